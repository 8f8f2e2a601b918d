"""Dual numbers: a network called on `Dual(primal, tangent)` returns its value and its directional derivative.

With x(s) a curve, Dual(x, dx/ds) through F gives Dual(F(x), dF/ds) by the chain rule, one operation at a time
(forward mode; Griewank & Walther 2008, Evaluating Derivatives, ch. 3). Backbones are plain PyTorch: every torch
function that meets a Dual arrives in `Dual.__torch_function__`, which looks up its rule by name in `RULES`.

The primal is computed by the very function that was called and keeps its graph where grad is enabled; the tangent is
computed under no_grad and never has one, because objectives use sg(dF/dt) only. Unlike torch.func.jvp, this needs
no second primal pass, multiplies no weight by a zero tangent, and leaves the primal its fused attention.

Traps. `isinstance(dual, torch.Tensor)` is False: einops and nn.MultiheadAttention refuse it. For torch.compile write
lists, not tuples, in cat and stack, and (torch 2.11 only) torch.rms_norm and torch.layer_norm for their namesakes in
nn.functional. A custom autograd.Function and reentrant checkpointing bypass `__torch_function__` and run their body
under no_grad, where gradients would be lost silently: a Dual remembers whether grad was enabled when it was made, and
is refused where it has been disabled since. Hence make the Dual, too, under no_grad for a pass without a graph.

A new operation is one function here, under `@rule("its name")`, and one line in tests/flow/test_dual.py.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Never

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from facm.flow import attention_jvp

Func = Callable[..., Any]

RULES: dict[str, Func] = {}
"""Name of a torch function, method or operator -> rule(func, *args, **kwargs); func is what was called. What a rule
does may not depend on func's name, which torch.compile does not know of methods."""


def rule(*names: str) -> Callable[[Func], Func]:
    """Enter the decorated rule into RULES under `names`."""

    def enter(function: Func) -> Func:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def refusal(what: str) -> TypeError:
    """Error for an operation that no rule covers."""
    return TypeError(
        f"Dual: no rule for {what} (operations in place never have one): write one in facm/flow/dual.py, "
        'or use total_derivative(..., method="func")'
    )


def _dispatch(name: str, func: Func, *args: Any, **kwargs: Any) -> Any:
    if name not in RULES:
        raise refusal(name)
    if not torch.is_grad_enabled():
        _check_grad_mode(name, args)
    return RULES[name](func, *args, **kwargs)


def _check_grad_mode(name: str, args: Sequence[Any]) -> None:
    """Refuse Duals among `args`, or in a list there (cat, stack), that were made while grad was enabled."""
    for x in args:
        if isinstance(x, list | tuple):
            _check_grad_mode(name, x)
        elif isinstance(x, Dual) and x.grad_mode:
            raise RuntimeError(
                f"Dual: grad mode was switched off before {name}, its gradient would be lost silently. A custom "
                "autograd.Function, checkpoint(use_reentrant=True) or torch.no_grad() inside a network does that: "
                "write plain operations, use checkpoint(use_reentrant=False), or make the Dual and call the whole "
                "network under no_grad"
            )


@dataclass(eq=False)
class Dual:
    """A tensor and its derivative along one direction.

    A dataclass and a pytree node rather than a Tensor: DDP and FSDP2 find the tensors in it, torch.compile traces it.

    Attributes:
        primal: any shape, floating dtype. Loses its graph where the Dual is made under no_grad (so rules leave
            their no_grad before they return one).
        tangent: shape and dtype of `primal`. Never has a graph: one that has is detached.
        grad_mode: whether grad was enabled when it was made; None: ask.

    Raises:
        ValueError: shapes or dtypes differ, or are not floating.
    """

    primal: Tensor
    tangent: Tensor
    grad_mode: bool | None = field(default=None, repr=False)

    __array_ufunc__ = None  # leaves `numpy scalar * dual` to __rmul__

    def __post_init__(self) -> None:
        p, d = self.primal, self.tangent
        if p.shape != d.shape or p.dtype != d.dtype or not p.dtype.is_floating_point:
            got = f"{tuple(p.shape)} {p.dtype} and {tuple(d.shape)} {d.dtype}"
            raise ValueError(f"Dual: got primal and tangent of {got}, need one shape and one floating dtype")
        if self.grad_mode is None:
            self.grad_mode = torch.is_grad_enabled()
        if d.requires_grad:
            self.tangent = d.detach()
        if p.requires_grad and not self.grad_mode:
            self.primal = p.detach()

    @classmethod
    def __torch_function__(cls, func: Func, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _dispatch(func.__name__.removeprefix("__").removesuffix("__"), func, *args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        if hasattr(torch.Tensor, name) and not name.startswith("__"):
            raise refusal(f"Tensor.{name}")
        raise AttributeError(f"'Dual' object has no attribute '{name}'")

    def __array__(self, *args: Any, **kwargs: Any) -> Never:
        raise refusal("numpy.asarray")

    shape = property(lambda self: self.primal.shape)
    dtype = property(lambda self: self.primal.dtype)
    device = property(lambda self: self.primal.device)
    ndim = property(lambda self: self.primal.ndim)


def _unflatten(leaves: Any, grad_mode: bool) -> Dual:
    """Rebuild without the checks of the constructor: a pytree may hold leaves of any kind."""
    dual = object.__new__(Dual)
    dual.primal, dual.tangent = leaves
    dual.grad_mode = grad_mode
    return dual


register_pytree_node(Dual, lambda dual: ([dual.primal, dual.tangent], dual.grad_mode), _unflatten)


def _primal(x: Any) -> Any:
    return x.primal if isinstance(x, Dual) else x


def _tangent(x: Any) -> Any:
    """Tangent of a Dual, zeros for a tensor, 0 for a number."""
    return x.tangent if isinstance(x, Dual) else torch.zeros_like(x) if isinstance(x, Tensor) else 0


def _match(primal: Tensor, tangent: Tensor) -> Dual:
    """Broadcast the tangent to the shape of the primal, cast it to its dtype (autocast)."""
    if tangent.dtype != primal.dtype:
        tangent = tangent.to(primal.dtype)
    return Dual(primal, tangent if tangent.shape == primal.shape else tangent.expand_as(primal))


def _only_first(func: Func, x: Any, *others: Any) -> None:
    if not isinstance(x, Dual) or any(isinstance(other, Dual) for other in others):
        raise refusal(f"{func.__name__} unless its first argument is a Dual and no other one is")


# Shape and reduction.


@rule("reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "unsqueeze", "squeeze")
@rule("expand", "repeat", "repeat_interleave", "narrow", "select", "index_select", "getitem", "roll", "flip", "clone")
@rule("chunk", "split", "tensor_split", "unbind", "contiguous", "to", "float", "double", "half", "bfloat16", "type_as")
@rule("expand_as", "reshape_as", "neg", "sum", "mean", "cumsum", "avg_pool2d", "interpolate")
@rule("pixel_shuffle", "pixel_unshuffle", "tile", "adaptive_avg_pool2d")
def _linear_map(func: Func, x: Any, *args: Any, **kwargs: Any) -> Any:
    """y = A x, dy = A dx. Another Dual may say what shape or dtype is wanted."""
    others = [_primal(other) for other in args]
    primal = func(_primal(x), *others, **kwargs)
    if not isinstance(x, Dual):
        return primal
    tangent = func(x.tangent, *others, **kwargs)
    if isinstance(primal, Tensor):
        return Dual(primal, tangent)
    return tuple(Dual(p, d) for p, d in zip(primal, tangent, strict=True))


@rule("view", "view_as")
def _view(func: Func, x: Any, *args: Any) -> Any:
    """The tangent is reshaped: its strides may differ from the primal's."""
    primal = func(_primal(x), *[_primal(arg) for arg in args])
    return Dual(primal, x.tangent.reshape(primal.shape)) if isinstance(x, Dual) else primal


@rule("size", "stride", "dim", "numel", "is_floating_point", "is_contiguous", "new_zeros", "new_ones", "new_full")
@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bucketize")
def _constant(func: Func, x: Dual, *args: Any, **kwargs: Any) -> Any:
    """What depends on shape, dtype and device only has no tangent, nor have whole numbers."""
    return func(x.primal, *args, **kwargs)


@rule("cat", "concat", "stack")
def _join(func: Func, tensors: Sequence[Any], *args: Any, **kwargs: Any) -> Dual:
    primal = func([_primal(x) for x in tensors], *args, **kwargs)
    return Dual(primal, func([_tangent(x) for x in tensors], *args, **kwargs))


@rule("pad")
def _pad(func: Func, x: Dual, pad: Any, mode: str = "constant", value: float | None = None) -> Dual:
    """What is padded with a number has no tangent there."""
    return Dual(func(x.primal, pad, mode, value), func(x.tangent, pad, mode))


# Arithmetic: a constant is a tensor or a number.


@rule("add", "sub")
def _sum(func: Func, a: Any, b: Any, **alpha: Any) -> Dual:
    primal = func(_primal(a), _primal(b), **alpha)
    return _match(primal, func(_tangent(a), b.tangent, **alpha) if isinstance(b, Dual) else a.tangent)


@rule("mul", "matmul", "bmm", "mm", "outer", "ger")
def _product(func: Func, a: Any, b: Any) -> Dual:
    """y = a b, dy = da b + a db; a constant costs no second product."""
    primal = func(_primal(a), _primal(b))
    with torch.no_grad():
        terms = [func(a.tangent, _primal(b))] if isinstance(a, Dual) else []
        terms += [func(_primal(a), b.tangent)] if isinstance(b, Dual) else []
        tangent = sum(terms[1:], start=terms[0])
    return Dual(primal, tangent)


@rule("div", "true_divide", "truediv")
def _quotient(func: Func, a: Any, b: Any) -> Dual:
    """y = a / b, dy = (da - y db) / b."""
    primal = func(_primal(a), _primal(b))
    with torch.no_grad():
        numerator = _tangent(a) - primal * b.tangent if isinstance(b, Dual) else a.tangent
        tangent = numerator / _primal(b)
    return _match(primal, tangent)


@rule("pow")
def _power(func: Func, x: Any, n: Any) -> Dual:
    """y = x^n, dy = n x^(n-1) dx, n a number."""
    if not isinstance(x, Dual) or not isinstance(n, int | float):
        raise refusal("pow unless its base is a Dual and its exponent a number")
    primal = func(x.primal, n)
    with torch.no_grad():
        tangent = n * x.primal ** (n - 1) * x.tangent if n else torch.zeros_like(x.tangent)
    return Dual(primal, tangent)


@rule("addcmul")
def _add_product(func: Func, x: Any, a: Any, b: Any, *, value: float = 1) -> Dual:
    """y = x + value a b."""
    primal = func(_primal(x), _primal(a), _primal(b), value=value)
    terms = [x.tangent] if isinstance(x, Dual) else []
    with torch.no_grad():
        terms += [value * a.tangent * _primal(b)] if isinstance(a, Dual) else []
        terms += [value * _primal(a) * b.tangent] if isinstance(b, Dual) else []
        tangent = sum(terms[1:], start=terms[0])
    return _match(primal, tangent)


@rule("einsum")
def _einsum(func: Func, equation: str, *operands: Any) -> Dual:
    """Linear in each operand: one product for each that is a Dual."""
    primals = [_primal(x) for x in operands]
    primal = func(equation, *primals)
    with torch.no_grad():
        terms = [
            func(equation, *primals[:i], x.tangent, *primals[i + 1 :])
            for i, x in enumerate(operands)
            if isinstance(x, Dual)
        ]
        tangent = sum(terms[1:], start=terms[0])
    return Dual(primal, tangent)


@rule("where")
def _where(func: Func, condition: Tensor, a: Any, b: Any) -> Dual:
    if isinstance(condition, Dual):
        raise refusal("where with a Dual as its condition")
    return _match(func(condition, _primal(a), _primal(b)), func(condition, _tangent(a), _tangent(b)))


@rule("maximum", "minimum")
def _extremum(func: Func, a: Any, b: Any) -> Dual:
    """Where a equals b, the tangent is that of a."""
    primal = func(_primal(a), _primal(b))
    return _match(primal, torch.where(primal == _primal(a), _tangent(a), _tangent(b)))


@rule("clamp", "clip")
def _clamp(func: Func, x: Dual, min: float | None = None, max: float | None = None) -> Dual:
    """Numbers as bounds; no derivative outside of them."""
    primal = func(x.primal, min, max)
    inside = (True if min is None else x.primal >= min) & (True if max is None else x.primal <= max)
    return Dual(primal, x.tangent * inside)


# Elementwise functions. A diagonal Jacobian is symmetric: ATen's backward kernel, where there is one, is also the
# forward derivative, and a fused one.

DERIVATIVES: dict[str, Callable[..., Tensor]] = {
    "abs": lambda x, y, dx: x.sign() * dx,
    "cos": lambda x, y, dx: -x.sin() * dx,
    "exp": lambda x, y, dx: y * dx,
    "gelu": lambda x, y, dx, **options: torch.ops.aten.gelu_backward(dx, x, **options),
    "log": lambda x, y, dx: dx / x,
    "reciprocal": lambda x, y, dx: -y * y * dx,
    "relu": lambda x, y, dx: (x > 0) * dx,
    "rsqrt": lambda x, y, dx: -0.5 * y**3 * dx,
    "sigmoid": lambda x, y, dx: torch.ops.aten.sigmoid_backward(dx, y),
    "silu": lambda x, y, dx: torch.ops.aten.silu_backward(dx, x),
    "sin": lambda x, y, dx: x.cos() * dx,
    "sqrt": lambda x, y, dx: 0.5 * dx / y,
    "square": lambda x, y, dx: 2 * x * dx,
    "tanh": lambda x, y, dx: torch.ops.aten.tanh_backward(dx, y),
}
"""Name -> (x, y = f(x), dx, options of f) -> f'(x) dx."""


def _elementwise(name: str) -> Func:
    def apply(func: Func, x: Dual, inplace: bool = False, **options: Any) -> Dual:
        if inplace:
            raise refusal(f"{name} with inplace=True")
        primal = func(x.primal, **options)
        with torch.no_grad():
            tangent = DERIVATIVES[name](x.primal, primal, x.tangent, **options)
        return Dual(primal, tangent)

    return apply


for _name in DERIVATIVES:
    RULES[_name] = _elementwise(_name)


# Layers.


@rule("linear", "conv1d", "conv2d", "conv3d", "conv_transpose2d")
def _affine(func: Func, x: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Dual:
    """y = W x + b, dy = W dx; the primal first, so that autocast caches its copy of W with a graph."""
    _only_first(func, x, weight, bias)
    primal = func(x.primal, weight, bias, *args, **kwargs)
    with torch.no_grad():
        tangent = func(x.tangent, weight, None, *args, **kwargs)
    return Dual(primal, tangent)


def _d_norm(x: Dual, dims: tuple[int, ...], eps: float | None, centre: bool) -> Tensor:
    """y = s c, s = (mean c^2 + eps)^(-1/2), c = x or x - mean x: dy = s (dc - s^2 mean(c dc) c), means over `dims`.

    In float32 at least, whose machine epsilon is the default of eps, as in F.rms_norm.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    c, dc = x.primal.to(dtype), x.tangent.to(dtype)
    if centre:
        c, dc = c - c.mean(dims, keepdim=True), dc - dc.mean(dims, keepdim=True)
    s = (c.square().mean(dims, keepdim=True) + (torch.finfo(dtype).eps if eps is None else eps)).rsqrt()
    return torch.addcmul(dc, c, s.square() * (c * dc).mean(dims, keepdim=True), value=-1).mul_(s)


def _norm(func: Func, x: Any, shape: Any, *weights: Any, eps: float | None, centre: bool) -> Dual:
    _only_first(func, x, *weights)
    primal = func(x.primal, shape, *weights, eps)
    with torch.no_grad():
        tangent = _d_norm(x, tuple(range(-len(shape), 0)), eps, centre)
        tangent = tangent if weights[0] is None else tangent.mul_(weights[0])
    return _match(primal, tangent)


@rule("rms_norm")
def _rms_norm(func: Func, x: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Dual:
    return _norm(func, x, normalized_shape, weight, eps=eps, centre=False)


@rule("layer_norm")
def _layer_norm(
    func: Func, x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Dual:
    return _norm(func, x, normalized_shape, weight, bias, eps=eps, centre=True)


@rule("group_norm")
def _group_norm(func: Func, x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Dual:
    """x (B, C, ...), statistics over (C / num_groups, ...)."""
    _only_first(func, x, weight, bias)
    primal = func(x.primal, num_groups, weight, bias, eps)
    with torch.no_grad():
        grouped = Dual(x.primal, x.tangent).reshape(x.shape[0], num_groups, -1)
        tangent = _d_norm(grouped, (-1,), eps, centre=True).reshape(x.shape)
        tangent = tangent if weight is None else tangent.mul_(weight.view(-1, *[1] * (x.ndim - 2)))
    return _match(primal, tangent)


@rule("softmax")
def _softmax(func: Func, x: Dual, dim: int, dtype: torch.dtype | None = None, **kwargs: Any) -> Dual:
    """P = softmax(S), dP = P (dS - sum P dS)."""
    if dim is None:
        raise refusal("softmax without dim")
    primal = func(x.primal, dim, dtype=dtype)
    with torch.no_grad():
        weighted = primal * x.tangent
        tangent = weighted - primal * weighted.sum(dim, keepdim=True)
    return _match(primal, tangent)


@rule("scaled_dot_product_attention")
def _attention(
    func: Func, query: Any, key: Any, value: Any, *args: Any, scale: float | None = None, **kwargs: Any
) -> Dual:
    """With grad the primal is that of the fused kernel, without it O of attention_jvp.py; they agree to rounding."""
    if any(isinstance(option, Tensor) or option for option in [*args, *kwargs.values()]):
        raise refusal("scaled_dot_product_attention with attn_mask, dropout_p, is_causal or enable_gqa")
    q, k, v = ((_primal(x), _tangent(x)) for x in (query, key, value))
    graph = torch.is_grad_enabled()
    o, tangent = attention_jvp.tangent(q, k, v, scale=scale, primal=not graph)
    primal: Any = func(q[0], k[0], v[0], scale=scale) if graph else o
    return _match(primal, tangent)


@rule("dropout")
def _dropout(func: Func, x: Dual, p: float = 0.5, training: bool = True, inplace: bool = False) -> Dual:
    """The identity: a random mask would be another one in every pass of a step."""
    if training and p > 0:
        raise TypeError(
            f"Dual: got dropout with p = {p} in training, whose random mask no other pass of the step would share: "
            "use Dropout of facm/networks/layers/dropout.py, or eval()"
        )
    return x


# Methods and operators of Dual, all by way of RULES.


def _method(func: Func, reflected: bool = False) -> Func:
    name = func.__name__

    def method(self: Dual, *args: Any, **kwargs: Any) -> Any:
        return _dispatch(name, func, *args, self) if reflected else _dispatch(name, func, self, *args, **kwargs)

    return method


def _call(name: str) -> Func:
    """x.name(...) as a function; Tensor.name itself, where it is written in Python, torch 2.11 does not trace."""

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, name)(*args, **kwargs)

    call.__name__ = name.strip("_")
    return call


for _name in RULES:
    if hasattr(torch.Tensor, _name):
        setattr(Dual, _name, _method(_call(_name)))
for _name in ("add", "sub", "mul", "truediv", "matmul", "pow"):
    setattr(Dual, f"__{_name}__", _method(getattr(operator, _name)))
    setattr(Dual, f"__r{_name}__", _method(getattr(operator, _name), reflected=True))
    setattr(Dual, f"__i{_name}__", _method(getattr(operator, f"i{_name}")))
for _name in ("__neg__", "__getitem__", "__setitem__"):
    setattr(Dual, _name, _method(_call(_name)))

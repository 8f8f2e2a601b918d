"""Dual numbers: a network called on `Dual(primal, tangent)` returns its value and its directional derivative.

With x(s) a curve, Dual(x, dx/ds) through F gives Dual(F(x), dF/ds) by the chain rule, one operation at a time
(forward mode; Griewank & Walther 2008, Evaluating Derivatives, ch. 3). Backbones are plain PyTorch: every torch
function that meets a Dual arrives in `Dual.__torch_function__`, which looks up its rule by name in `RULES`.

The primal is computed by the very function that was called and keeps its graph where grad is enabled; the tangent is
computed under no_grad and never has one, because objectives use sg(dF/dt) only. Unlike torch.func.jvp, this needs
no second primal pass, multiplies no weight by a zero tangent, and leaves the primal its fused attention.

Traps. `isinstance(dual, torch.Tensor)` is False: einops and nn.MultiheadAttention refuse it. For torch.compile write
lists, not tuples, in cat and stack, and (torch 2.11 only) torch.rms_norm and torch.layer_norm for their namesakes in
nn.functional. A custom autograd.Function and reentrant checkpointing bypass `__torch_function__`, and the gradient of
what they wrap would be lost silently: `_dispatch` raises if the primal has a graph; if it has none yet (a first layer),
nothing is noticed, so test that gradients are equal with and without Dual.

A new operation is one function here, under `@rule("its name")`, and one line in tests/test_dual.py.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Never

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.utils._pytree import register_pytree_node

Func = Callable[..., Any]

RULES: dict[str, Func] = {}
"""Name of a torch function, method or operator -> rule(func, *args, **kwargs); func is what was called."""


def rule(*names: str) -> Callable[[Func], Func]:
    """Enter the decorated rule into RULES under `names`."""

    def enter(function: Func) -> Func:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def refusal(what: str) -> TypeError:
    """Error for an operation that no rule covers."""
    return TypeError(
        f"Dual: no rule for {what} (operations in place never have one): write one in facm/dual.py, "
        'or use total_derivative(..., method="func")'
    )


def _dispatch(name: str, func: Func, *args: Any, **kwargs: Any) -> Any:
    if name not in RULES:
        raise refusal(name)
    if not torch.is_grad_enabled() and any(isinstance(x, Dual) and x.primal.requires_grad for x in args):
        raise RuntimeError(
            f"Dual: grad mode was switched off before {name}, its gradient would be lost silently. "
            "A custom autograd.Function, checkpoint(use_reentrant=True) or torch.no_grad() inside a network does that: "
            "write plain operations, use checkpoint(use_reentrant=False), or call the whole network under no_grad"
        )
    return RULES[name](func, *args, **kwargs)


@dataclass(eq=False)
class Dual:
    """A tensor and its derivative along one direction.

    A dataclass and a pytree node rather than a Tensor: DDP and FSDP2 find the tensors in it, torch.compile traces it.

    Attributes:
        primal: any shape, floating dtype. Loses its graph where the Dual is made under no_grad (so rules leave
            their no_grad before they return one).
        tangent: shape and dtype of `primal`. Never has a graph: one that has is detached.

    Raises:
        ValueError: shapes or dtypes differ, or are not floating.
    """

    primal: Tensor
    tangent: Tensor

    __array_ufunc__ = None  # leaves `numpy scalar * dual` to __rmul__

    def __post_init__(self) -> None:
        p, d = self.primal, self.tangent
        if p.shape != d.shape or p.dtype != d.dtype or not p.dtype.is_floating_point:
            got = f"{tuple(p.shape)} {p.dtype} and {tuple(d.shape)} {d.dtype}"
            raise ValueError(f"Dual: got primal and tangent of {got}, need one shape and one floating dtype")
        if d.requires_grad:
            self.tangent = d.detach()
        if p.requires_grad and not torch.is_grad_enabled():
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


def _unflatten(leaves: Any, context: None) -> Dual:
    """Rebuild without the checks of the constructor: a pytree may hold leaves of any kind."""
    dual = object.__new__(Dual)
    dual.primal, dual.tangent = leaves
    return dual


register_pytree_node(Dual, lambda dual: ([dual.primal, dual.tangent], None), _unflatten)


def _primal(x: Any) -> Any:
    return x.primal if isinstance(x, Dual) else x


def _tangent(x: Any) -> Any:
    """Tangent of a Dual, zeros for a tensor, 0 for a number."""
    return x.tangent if isinstance(x, Dual) else torch.zeros_like(x) if isinstance(x, Tensor) else 0


def _match(primal: Tensor, tangent: Tensor) -> Dual:
    """Broadcast the tangent to the shape of the primal, cast it to its dtype (autocast)."""
    return Dual(primal, tangent.to(primal.dtype).expand_as(primal))


def _only_first(func: Func, x: Any, *others: Any) -> None:
    if not isinstance(x, Dual) or any(isinstance(other, Dual) for other in others):
        raise refusal(f"{func.__name__} unless its first argument is a Dual and no other one is")


# Shape and reduction.

REMADE: dict[str, Func] = {"view": torch.Tensor.reshape, "view_as": torch.Tensor.reshape_as}
"""What stands in for a function on the tangent, whose strides may differ from the primal's."""


@rule("reshape", "view", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "unsqueeze", "squeeze")
@rule("expand", "repeat", "repeat_interleave", "narrow", "select", "index_select", "getitem", "roll", "flip", "clone")
@rule("chunk", "split", "tensor_split", "unbind", "contiguous", "to", "float", "double", "half", "bfloat16", "type_as")
@rule("expand_as", "view_as", "reshape_as", "neg", "sum", "mean", "cumsum", "avg_pool2d", "interpolate")
@rule("pixel_shuffle", "pixel_unshuffle")
def _linear_map(func: Func, x: Any, *args: Any, **kwargs: Any) -> Any:
    """y = A x, dy = A dx. Another Dual may say what shape or dtype is wanted."""
    others = [_primal(other) for other in args]
    primal = func(_primal(x), *others, **kwargs)
    if not isinstance(x, Dual):
        return primal
    tangent = REMADE.get(func.__name__, func)(x.tangent, *others, **kwargs)
    if isinstance(primal, Tensor):
        return Dual(primal, tangent)
    return tuple(Dual(p, d) for p, d in zip(primal, tangent, strict=True))


@rule("size", "stride", "dim", "numel", "is_floating_point", "is_contiguous", "new_zeros", "new_ones", "new_full")
@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
def _constant(func: Func, x: Dual, *args: Any, **kwargs: Any) -> Any:
    """What depends on shape, dtype and device only has no tangent."""
    return func(x.primal, *args, **kwargs)


@rule("cat", "concat", "stack")
def _join(func: Func, tensors: Sequence[Any], *args: Any, **kwargs: Any) -> Dual:
    primal = func([_primal(x) for x in tensors], *args, **kwargs)
    return Dual(primal, func([_tangent(x) for x in tensors], *args, **kwargs))


# Arithmetic: a constant is a tensor or a number.


@rule("add", "sub")
def _sum(func: Func, a: Any, b: Any) -> Dual:
    primal = func(_primal(a), _primal(b))
    return _match(primal, func(_tangent(a), b.tangent) if isinstance(b, Dual) else a.tangent)


@rule("mul", "matmul", "bmm")
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


@rule(*DERIVATIVES)
def _elementwise(func: Func, x: Dual, inplace: bool = False, **options: Any) -> Dual:
    if inplace:
        raise refusal(f"{func.__name__} with inplace=True")
    primal = func(x.primal, **options)
    with torch.no_grad():
        tangent = DERIVATIVES[func.__name__](x.primal, primal, x.tangent, **options)
    return Dual(primal, tangent)


# Layers.


@rule("linear", "conv1d", "conv2d", "conv3d", "conv_transpose2d")
def _affine(func: Func, x: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Dual:
    """y = W x + b, dy = W dx; the primal first, so that autocast caches its copy of W with a graph."""
    _only_first(func, x, weight, bias)
    primal = func(x.primal, weight, bias, *args, **kwargs)
    with torch.no_grad():
        tangent = func(x.tangent, weight, None, *args, **kwargs)
    return Dual(primal, tangent)


def _d_standardised(x: Dual, dims: tuple[int, ...], eps: float | None, centre: bool) -> Tensor:
    """x_hat = s c, s = (mean c^2 + eps)^(-1/2), c = x or x - mean x: d x_hat = s (dc - x_hat mean(x_hat dc)).

    Means over `dims`, in float32 at least, whose machine epsilon is the default of eps, as in F.rms_norm.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    c, dc = x.primal.to(dtype), x.tangent.to(dtype)
    if centre:
        c, dc = c - c.mean(dims, keepdim=True), dc - dc.mean(dims, keepdim=True)
    s = (c.square().mean(dims, keepdim=True) + (torch.finfo(dtype).eps if eps is None else eps)).rsqrt()
    x_hat = s * c
    return s * (dc - x_hat * (x_hat * dc).mean(dims, keepdim=True))


def _norm(func: Func, x: Any, shape: Any, *weights: Any, eps: float | None, centre: bool) -> Dual:
    _only_first(func, x, *weights)
    primal = func(x.primal, shape, *weights, eps)
    with torch.no_grad():
        tangent = _d_standardised(x, tuple(range(-len(shape), 0)), eps, centre)
        tangent = tangent if weights[0] is None else tangent * weights[0]
    return _match(primal, tangent)


@rule("rms_norm")
def _rms_norm(func: Func, x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Dual:
    return _norm(func, x, shape, weight, eps=eps, centre=False)


@rule("layer_norm")
def _layer_norm(func: Func, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Dual:
    return _norm(func, x, shape, weight, bias, eps=eps, centre=True)


@rule("group_norm")
def _group_norm(func: Func, x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Dual:
    """x (B, C, ...), statistics over (C / groups, ...)."""
    _only_first(func, x, weight, bias)
    primal = func(x.primal, groups, weight, bias, eps)
    with torch.no_grad():
        grouped = Dual(x.primal, x.tangent).reshape(x.shape[0], groups, -1)
        tangent = _d_standardised(grouped, (-1,), eps, centre=True).reshape(x.shape)
        tangent = tangent if weight is None else tangent * weight.view(-1, *[1] * (x.ndim - 2))
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
def _attention(func: Func, q: Any, k: Any, v: Any, *args: Any, scale: float | None = None, **kwargs: Any) -> Dual:
    """S = scale q k^T, P = softmax(S), O = P v, dO = dP v + P dv; q, k, v (B, heads, N, head_dim).

    With grad the primal is the fused kernel's O, without it P v, which is at hand; they agree to rounding.
    P (B, heads, N, N) is transient.
    """
    if any(isinstance(option, Tensor) or option for option in [*args, *kwargs.values()]):
        raise refusal("scaled_dot_product_attention with attn_mask, dropout_p, is_causal or enable_gqa")
    (q, dq), (k, dk), (v, dv) = ((_primal(x), _tangent(x)) for x in (q, k, v))
    primal = func(q, k, v, scale=scale) if torch.is_grad_enabled() else None
    with torch.no_grad():
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        weights = (factor * q @ k.transpose(-2, -1)).softmax(-1)
        weighted = weights * (factor * dq @ k.transpose(-2, -1) + factor * q @ dk.transpose(-2, -1))
        d_weights = weighted - weights * weighted.sum(-1, keepdim=True)
        tangent = d_weights @ v + weights @ dv
        explicit = weights @ v if primal is None else primal
    return _match(explicit, tangent)


@rule("dropout")
def _dropout(func: Func, x: Dual, p: float = 0.5, training: bool = True, inplace: bool = False) -> Dual:
    """One mask for both parts, drawn as the plain function draws it: equal seeds, equal masks."""
    if inplace:
        raise refusal("dropout with inplace=True")
    mask = nnf.dropout(torch.ones_like(x.primal), p, training)
    return Dual(x.primal * mask, x.tangent * mask)


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

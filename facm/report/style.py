"""The page's style: system fonts, one column that a phone can show, dark where the reader's screen is.

Colours of lines are Okabe and Ito's (2008), in an order in which the first keep 3:1 from the ground.
"""

STYLE = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1a1a1a;--soft:#595959;--rule:#d0d0d0;--panel:#f5f5f5;--link:#0b57a4;
--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b5508b;--c4:#1a1a1a;--c5:#a87400}
@media (prefers-color-scheme:dark){:root{--ground:#15171a;--ink:#ececec;--soft:#b3b3b3;--rule:#474b50;--panel:#212428;
--link:#8ec5ff;--c0:#56b4e9;--c1:#f08a4b;--c2:#2fc79a;--c3:#e09cc4;--c4:#ececec;--c5:#e6b422}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
main,header,footer{max-width:68rem;margin:0 auto;padding:0 1rem}
header{padding-top:1.5rem}
footer{padding-bottom:2rem;color:var(--soft)}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .5rem}
h2{font-size:1.25rem;margin:2.2rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--rule)}
h3{font-size:1.05rem;margin:1.4rem 0 .5rem}
h4{font-size:.95rem;margin:1rem 0 .4rem;font-weight:600}
p{margin:.5rem 0;max-width:46rem}
a{color:var(--link)}
nav ul,.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;padding:0;margin:.6rem 0;list-style:none}
.legend{font-size:.85rem;color:var(--soft)}
.legend li{display:flex;align-items:center;gap:.4rem}
.note{border-left:4px solid var(--c1);padding:.3rem .8rem;background:var(--panel)}
.cards{display:flex;flex-wrap:wrap;gap:.7rem;margin:1rem 0}
.cards>div{background:var(--panel);border-radius:.4rem;padding:.5rem .9rem}
.cards dt{font-size:.85rem;color:var(--soft)}
.cards dd{margin:0}
.cards dd b{font-size:1.15rem;display:block}
.cards dd span{font-size:.85rem;color:var(--soft)}
.scroll{overflow-x:auto;margin:.6rem 0}
.scroll:focus-visible{outline:2px solid var(--link)}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;overflow-wrap:normal}
caption{text-align:left;color:var(--soft);font-size:.85rem;padding-bottom:.3rem}
th,td{padding:.25rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule)}
th:first-child{text-align:left;padding-left:0;position:sticky;left:0;background:var(--ground)}
th.words{text-align:left}
td.words{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:9rem;max-width:24rem}
details{margin:.6rem 0}
summary{cursor:pointer;color:var(--link)}
.terms{display:grid;grid-template-columns:max-content 1fr;gap:.15rem .9rem;font-size:.9rem;margin:.5rem 0}
.terms dd{margin:0}
figure{margin:0}
figcaption{font-size:.85rem;color:var(--soft)}
svg{display:block;width:100%;height:auto}
svg.swatch{width:34px;flex:none}
.wide{max-width:40rem}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:1.1rem}
.tick{font:12px system-ui,sans-serif;fill:var(--soft)}
.axis{fill:none;stroke:var(--soft)}
.grid{stroke:var(--rule);stroke-width:.6}
.frame{fill:none;stroke:var(--soft)}
.dots{stroke:var(--c0);stroke-width:2;stroke-linecap:round;opacity:.75}
.ways{stroke:var(--c1);stroke-width:.8;fill:none}
path[class^=line]{fill:none;stroke-width:1.8}
path.mark{stroke-width:1.5}
.hollow{fill:var(--ground)!important}
.row{display:grid;grid-template-columns:8.5rem 1fr;align-items:center;gap:.6rem;font-size:.85rem;max-width:48rem}
.rows{display:grid;gap:.35rem;margin:.8rem 0 1.4rem}
.row img{width:100%;height:auto}
img.pixels{image-rendering:pixelated}
.pairs,.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));gap:.8rem;max-width:48rem}
.pictures{grid-template-columns:repeat(auto-fill,minmax(4rem,1fr))}
.pairs img,.pictures img{width:100%;height:auto;display:block}
@media (max-width:34rem){.row{grid-template-columns:1fr;gap:.1rem}
.terms{grid-template-columns:1fr}.terms dd{margin-left:1rem}}
@media print{details>*{display:block}}
""" + "".join(f".line{i}{{stroke:var(--c{i})}}.mark.line{i}{{fill:var(--c{i})}}\n" for i in range(6))

"""The page's style: one column, readable on a telephone and on paper, light and dark by the colours of the charts."""

CSS = """
*{box-sizing:border-box}
body{margin:0;font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue','DejaVu Sans',sans-serif;
color:var(--cd-ink);background:var(--cd-paper)}
header,main,footer{max-width:980px;margin:0 auto;padding:0 24px}
header{padding-top:20px}
header.bad{border-top:6px solid var(--cd-bad)}header.good{border-top:6px solid var(--cd-good)}
header.care{border-top:6px solid var(--cd-canary)}header.quiet{border-top:6px solid var(--cd-quiet)}
.ids{margin:0;color:var(--cd-quiet);font-size:13px;overflow-wrap:anywhere}
h1{font-size:28px;line-height:1.2;margin:6px 0 16px;font-weight:600;overflow-wrap:anywhere}
h1 b{font-weight:600}
.bad .icon{color:var(--cd-bad)}.good .icon{color:var(--cd-good)}.care .icon{color:var(--cd-canary)}
h2{font-size:16px;margin:0 0 8px;font-weight:600}
.answers{display:grid;grid-template-columns:1fr 1.5fr 1fr;gap:16px}
.answers section{background:var(--cd-shade);border-radius:8px;padding:14px 16px;margin:0;overflow-wrap:anywhere}
.answers h2{font-size:12px;text-transform:uppercase;letter-spacing:.06em;color:var(--cd-quiet)}
.answers p{margin:0 0 8px}
.versus{font-size:15px}.versus b{font-size:26px;line-height:1.2}
.canary{color:var(--cd-canary)}.stable{color:var(--cd-stable)}
.sentence{font-size:13px}.note,small{color:var(--cd-quiet);font-size:13px}
.steps small{display:block}
.key{display:flex;flex-wrap:wrap;gap:8px 36px;margin:16px 0 0;padding:12px 0;border-bottom:1px solid var(--cd-rule)}
.key dt{font-size:12px;color:var(--cd-quiet)}.key dd{margin:0;font-size:18px;font-weight:600}
main section{margin:28px 0}
main h2{border-bottom:1px solid var(--cd-rule);padding-bottom:6px;font-size:18px}
figure{margin:18px 0;break-inside:avoid}figcaption{font-weight:600;font-size:14px;margin-bottom:2px}
.marks{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;margin:4px 0;padding:0;
font-size:12px;color:var(--cd-quiet)}
.marks svg,.timeline svg{vertical-align:-2px}
.wide,figure{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums;margin:8px 0 16px}
th,td{text-align:left;padding:5px 12px 5px 0;border-bottom:1px solid var(--cd-rule);vertical-align:top}
thead th{color:var(--cd-quiet);font-weight:500;font-size:12px}
tbody th{font-weight:500;min-width:9ch;overflow-wrap:break-word}td{overflow-wrap:break-word;min-width:7ch}
tr.strong th,tr.strong td{font-weight:700}
.timeline{list-style:none;margin:0;padding:0;font-size:13.5px}
.timeline li{display:grid;grid-template-columns:150px 1fr;gap:10px;padding:4px 0;border-bottom:1px solid var(--cd-rule);
break-inside:avoid}
.timeline time{color:var(--cd-quiet);font-variant-numeric:tabular-nums}
.timeline li>span{overflow-wrap:anywhere}
.timeline .quiet{color:var(--cd-quiet)}.timeline .quiet b{font-weight:500}
.timeline .critical b{color:var(--cd-bad)}
pre{font:11.5px/1.45 ui-monospace,'DejaVu Sans Mono',Menlo,monospace;white-space:pre;overflow-x:auto;margin:0;
background:var(--cd-shade);padding:12px;border-radius:8px}
code{font-size:12px}a{color:var(--cd-stable)}
footer{padding-top:12px;padding-bottom:40px;color:var(--cd-quiet);font-size:12px}
@media screen and (max-width:760px){.wide table,figure .cd-chart{min-width:620px}
.answers{grid-template-columns:1fr}.timeline li{grid-template-columns:1fr;gap:0}
h1{font-size:23px}
header,main,footer{padding-left:14px;padding-right:14px}}
@page{margin:14mm}
@media print{body{font-size:11pt}header,main,footer{max-width:none;padding-left:0;padding-right:0}
.answers{grid-template-columns:1fr 1.5fr 1fr}.answers section,pre{border:1px solid var(--cd-rule);background:none}
h2,figcaption{break-after:avoid}tr{break-inside:avoid}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:7pt}.wide{overflow:visible}a{text-decoration:none}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""

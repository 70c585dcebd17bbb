"""How the page looks: theme, style sheet, and what stands in for images that a browser cannot show."""

import gradio as gr

from training.data.image_reading import IMAGE_SUFFIXES

THEME = gr.themes.Default(font=["system-ui", "sans-serif"]).set(
    block_label_text_color="*neutral_700", block_title_text_color="*neutral_800", block_info_text_color="*neutral_600"
)

CSS = """
.html-container { padding: 0 !important }
.verdict { border-left: 8px solid; border-radius: 6px; padding: 12px 16px }
.verdict { background: var(--background-fill-secondary) }
.verdict h2 { margin: 0 0 6px; font-size: 1.35rem; font-weight: 600 }
.verdict p { margin: 4px 0; line-height: 1.45 }
.verdict.accepted { border-color: #0072b2 }
.verdict.rejected { border-color: #d55e00 }
.scale { font-size: .875rem; line-height: 1.3 }
.scale img { width: 100%; height: 16px; border-radius: 3px }
.scale .ends { display: flex; justify-content: space-between; gap: 1em }
.verdict h3 { margin: 0 0 6px; font-size: 1.05rem; font-weight: 600 }
.verdict.unfamiliar { border-color: #cc79a7 }
.verdict + .verdict { margin-top: 12px }
.verdict.unknown { border-color: var(--border-color-primary) }
progress { appearance: none; width: 100%; height: 10px; border: 0; border-radius: 5px; overflow: hidden }
progress, progress::-webkit-progress-bar { background: var(--border-color-primary) }
progress::-webkit-progress-value { background: #0072b2 }
progress::-moz-progress-bar { background: #0072b2 }
.histogram { max-width: 760px; margin: 0 auto; font-size: .875rem }
@media (max-width: 600px) { .histogram svg { font-size: 21px } }
.cost { max-width: 480px; font-size: .875rem; line-height: 1.45; margin: 4px 0 }
.cost svg { max-width: 380px }
.histogram i { display: inline-block; width: 1em; height: .8em; margin: 0 .3em }
#batch-table { --font-mono: system-ui, sans-serif }
#batch-table td img { height: 48px; max-width: 72px; min-width: 24px; object-fit: contain; margin: 0 auto }
#batch-table [data-heading="0"] { min-width: 90px !important }
#batch-results .label-clear-button { display: none }
#training-words .wrap:has(.error) { display: none }
details { line-height: 1.45 }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 8px; margin: 8px 0 }
.views { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; margin: 8px 0 }
.views.pairs { grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)) }
.views figure { margin: 0; padding: 6px; border: 2px solid #0072b2; border-radius: 6px }
.views figure.wrong { border-color: #d55e00 }
.views figure div { display: flex; gap: 4px }
.views img { flex: 1; min-width: 0; max-height: 220px; object-fit: contain }
.views figcaption { font-size: .875rem; margin-top: 4px; overflow-wrap: anywhere }
table.regions { width: 100%; margin: 8px 0; border: 0 !important; font-size: .875rem; border-collapse: collapse }
table.regions th { text-align: left; font-weight: 600 }
table.regions td, table.regions th { padding: 2px 8px 2px 0 !important; border: 0 !important }
table.regions tr { border: 0 !important }
table.regions tr + tr { border-top: 1px solid var(--border-color-primary) !important }
table.results td { white-space: nowrap }
table.results td, table.results th:not(:first-child) { text-align: right }
table.results tbody th { font-weight: 400; white-space: nowrap }
.wide { overflow-x: auto }
.verdict details { margin-top: 4px }
.verdict summary { cursor: pointer }
.clear > label { position: static !important; border: 0; box-shadow: none }
.clear .icon-button-wrapper { top: 0; right: 0; border: 0 }
#comparison .image-container { position: static }
#part { display: flex; flex-direction: column }
#part .image-container { flex: 1; min-height: 0; height: auto }
:has(> #view) { background: none; border: 0 }
#view { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 12px; padding: 0; border: 0; background: none }
#view > span { margin: 0 }
#examples .grid-wrap { min-height: 0; padding: 4px 8px 8px }
#examples .grid-container { grid-template-columns: repeat(5, 1fr); grid-auto-rows: auto; grid-template-rows: none }
#examples .caption-label { position: static; display: block; max-width: none; border: 0; padding: 2px 4px }
#examples .thumbnail-item { display: flex; flex-direction: column; height: auto; aspect-ratio: auto }
#examples img { aspect-ratio: 1; object-fit: cover; width: 100%; height: auto }
@media (max-width: 767px) {
  #inspect { flex-direction: column }
  #part { height: 220px !important; min-height: 0 }
  #question, #answer { display: contents }
  #example-box { order: 1 }
  #verdict { order: 2 }
  #rate { order: 3 }
  #found { order: 4 }
  #more { order: 5 }
  #examples .grid-container { display: flex; overflow-x: auto }
  #examples .gallery-item { flex: 0 0 76px }
}
@media (max-width: 600px) {
  table.results, table.results tbody { display: block }
  table.results thead { display: none }
  table.results tr { display: grid; grid-template-columns: 1fr 1fr; column-gap: 16px; padding: 8px 0 }
  table.results tbody th { grid-column: 1 / -1; font-weight: 600; white-space: normal; overflow-wrap: anywhere }
  table.results td { display: flex; justify-content: space-between; gap: 8px; padding-right: 0 !important }
  table.results td::before { content: attr(data-title); color: var(--block-info-text-color) }
  table.results td[data-title^="defective"] { grid-column: 1 / -1; font-weight: 600; order: -1 }
  table.results tbody th { order: -2 }
}
.scale .mark { width: fit-content; position: relative; transform: translateX(-50%); white-space: nowrap }
"""

HEAD = """
<script>
const noPreview = "data:image/svg+xml," + encodeURIComponent(
  `<svg xmlns="http://www.w3.org/2000/svg" width="300" height="80" font-family="sans-serif" font-size="14" fill="gray">
  <text x="150" y="45" text-anchor="middle">no preview of this file</text></svg>`)
document.addEventListener("error", (event) => {
  if (event.target.tagName === "IMG" && event.target.src !== noPreview) event.target.src = noPreview
}, true)

const imageNames = /\\.(NAMES)$/i
function typed(files) {
  const transfer = new DataTransfer()
  for (const file of files) {
    const named = !file.type && imageNames.exec(file.name)
    transfer.items.add(named ? new File([file], file.name, { type: "image/" + named[1].toLowerCase() }) : file)
  }
  return transfer.files
}
const isUntyped = (file) => !file.type && imageNames.test(file.name)
const isForImages = (input) => input?.type === "file" && input.accept.includes("image/*")
document.addEventListener("change", (event) => {
  const input = event.target
  if (isForImages(input) && [...input.files].some(isUntyped)) input.files = typed(input.files)
}, true)
document.addEventListener("drop", (event) => {
  const input = event.target.closest("button")?.querySelector("input[type=file]")
  if (!isForImages(input) || ![...event.dataTransfer.files].some(isUntyped)) return
  event.preventDefault()
  event.stopPropagation()
  input.files = event.dataTransfer.files
  input.dispatchEvent(new Event("change", { bubbles: true }))
}, true)

const ofArgument = /^The input value that is provided in the ".*?" \\S+\\s+component\\.\\s*/s
const ofAnswer = /^The output value that appears in the "(.*)" \\S+\\s+component\\.\\s*$/s
new MutationObserver(() => {
  for (const words of document.querySelectorAll(".api-docs p.desc")) {
    const said = words.textContent.trim()
    const plain = said.replace(ofArgument, "").replace(ofAnswer, "$1")
    if (plain !== said) words.firstChild.nodeValue = plain
  }
}).observe(document, { childList: true, subtree: true })
</script>
""".replace("NAMES", "|".join(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
"""Browsers show no TIFF, and no damaged file: say so instead of a broken image. Many know no type for HEIC, JPEG 2000
or TGA, so that Gradio would take the file for no image: it is told the type that the file's name says. "Use via API"
speaks of components, of which endpoints have none: what remains is what `describe_endpoints` says."""

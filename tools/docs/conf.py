"""Settings of Sphinx. Nothing is loaded from the network when a page is viewed: fonts are the system's."""

project = "finetune-operator"
author = "the finetune-operator authors"
project_copyright = author
html_title = project

extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
root_doc = "index"

myst_heading_anchors = 4
myst_links_external_new_tab = False
# Output of commands has signs that no lexer knows.
suppress_warnings = ["misc.highlighting_failure"]
highlight_language = "none"

html_theme = "furo"
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
# The prompt and lines of output are not copied.
copybutton_prompt_text = "$ "

# SPDX-License-Identifier: Apache-2.0
"""Settings of Sphinx. A page loads nothing from the network; it uses the system's fonts."""

project = "finetune-operator"
author = "the finetune-operator authors"
project_copyright = author
html_title = project

extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
root_doc = "index"

myst_heading_anchors = 4
myst_links_external_new_tab = False
# Output of commands contains characters that no lexer knows.
suppress_warnings = ["misc.highlighting_failure"]
highlight_language = "none"

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
# Copies commands without the prompt and without output.
copybutton_prompt_text = "$ "

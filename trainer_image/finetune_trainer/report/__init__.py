# SPDX-License-Identifier: Apache-2.0
"""Reports about rows, their tokens and training, as JSON for programs and as one HTML page for people.

Prepared -> document.document -> report.json
            document -> html_page.page -> report.html
"""

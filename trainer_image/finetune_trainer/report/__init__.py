"""Reports about rows, their tokens and the training, for programs as JSON and for people as one HTML page.

Prepared -> document.document -> report.json
            document -> page.page -> report.html
"""

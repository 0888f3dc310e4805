# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: its scores, and what each model answered to each row, the worst first.

EvaluationFacts -> content.evaluation_report -> evaluation.json
                   evaluation_report -> html_page.evaluation_page -> evaluation.html
"""

"""The Leadsync page in Airflow's UI: a JSON API, and the static files that show it. Knows nothing of Airflow.

One module per view (overview, operations, dead_letters, lead, recovery), its queries on top; `app` puts them together,
`access` says who may see and do what, `probes` asks services that may be slow. Nothing counts a large table: counts end
at `queries.BOUND`, everything else is found by an index, page by page.
"""

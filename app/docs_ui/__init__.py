"""The pages for a person with a browser: `/` says where to go, `/docs` shows the API.

A room beside app.api, because nothing here reads or changes a transaction: the pages are static and work with the
database down. They also work offline. Swagger UI is vendored from its npm package in vendor/ (VENDOR.json there
records version, licence and hashes), and no page loads anything from another host.
"""

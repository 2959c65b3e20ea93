"""What builds the site out of docs/ and of files elsewhere in the repository; mkdocs.yml names site.py."""

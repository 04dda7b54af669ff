"""Rows come in: tables of URLs, image tars, folders."""

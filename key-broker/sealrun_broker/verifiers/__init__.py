"""One module per kind of evidence, each with `verify`; appraisal.py knows them."""

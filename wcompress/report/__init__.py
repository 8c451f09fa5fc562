"""Reports: what an archive is worth, as JSON, CSV, Markdown, HTML and pictures.

    baselines  what anybody would try first (fp16, int8, int4, zstd), measured by the bytes
    pipeline   one built-in model: trained, packed, unpacked from disk, scored before and after
    sweep      ratio against accuracy, for any model and task, or the means over several trainings
    sweep_results, sweep_page  what a sweep found, and its page
    rows       what tables and figures are made of; means over models, the best of all
    peers      points that others measured, from a file
    reproduce  the paper's tables and figures, with every byte counted beside them
    paper      what the paper prints
    samples    test digits with the predictions of two models
    figures    plain numbers → PNG
    render     tables and pictures → JSON, CSV, Markdown, HTML
    extras     whether matplotlib and jinja2 are there

Nothing here prints.
"""

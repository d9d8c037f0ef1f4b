import json

import pytest
from helpers.runs import BREAKOUT, EVALUATION, SCRIPT, TRUTH, make_run, manifest

from pipeline.manifest.plan import Plan
from pipeline.report import build
from pipeline.results.funnel import funnel
from pipeline.results.verdicts import Results
from pipeline.storage.records import EvaluationRecord, TruthRecord


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A finished run with models, evaluation and truth, and its report."""
    root = tmp_path_factory.mktemp("run")
    plan = Plan(manifest(root))
    run = make_run(root, plan)
    lines = [
        {"step": step, "epoch": 0, "itc": 4 / step, "itm": 0.7, "mlm": 2.0 / step, "lm": 3.0 / step}
        | {"loss": 9 / step, "lr": 1e-4, "temperature": 0.07, "images_per_second": 250.0}
        | ({} if step % 100 else {"validation": {"retrieval.itm.TR@1": step / 400, "seconds": 9.0}})
        for step in range(1, 400)
    ]
    content = "\n".join(['{"step": 0, "loss": NaN}', *map(json.dumps, lines), '{"step": 4'])
    run.write(content.encode(), "models", "filter", "metrics.jsonl")
    lines = [
        {"step": step, "epoch": 0, "sigmoid": 5 / step, "loss": 5 / step, "lr": 1e-4, "bias": -10.0}
        for step in range(1, 9)
    ]
    run.write("\n".join(map(json.dumps, lines)).encode(), "models", "clip", "metrics.jsonl")
    samples = [
        {"step": step, "caption": SCRIPT, "written": f"a boat {BREAKOUT} {step}"}
        for step in (100, 200, 300)
        for _ in range(9)
    ]
    run.write("\n".join(map(json.dumps, samples)).encode(), "models", "filter", "samples.jsonl")
    results = Results(run, plan)
    evaluation, truth = EvaluationRecord(EVALUATION), TruthRecord(**TRUTH)
    build.write(results, funnel(results), evaluation=evaluation, truth=truth)
    return run, plan

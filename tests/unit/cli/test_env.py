"""``ssd1b env``: the facts of a bug report, without secrets."""

import json

import torch


def test_the_report_names_versions_formats_and_what_is_missing(run, monkeypatch):
    monkeypatch.setattr("ssd1b.bench.environment.find_spec", lambda name: None if name == "optuna" else name)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    done = run("env")
    assert done.code == 0
    assert f"torch {torch.__version__}" in done.out
    assert "lab: missing optuna" in done.out and "train: installed" in done.out
    assert "OMP_NUM_THREADS=2" in done.out


def test_the_report_shows_neither_tokens_nor_paths(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    done = run("env", "--json")
    report = json.loads(done.out)
    assert "HF_TOKEN is set" in report["variables"] and "HF_HOME is set" in report["variables"]
    assert "hf_abc" not in done.out and str(tmp_path) not in done.out


def test_models_of_the_cache_are_listed(run, monkeypatch):
    from ssd1b.weights.hub import AvailableModel

    models = [
        AvailableModel(name="a/b", source="cache", ready=True),
        AvailableModel(name="c", source="x/y", ready=False),
    ]
    monkeypatch.setattr("ssd1b.bench.environment.available_models", lambda: models)
    assert json.loads(run("env", "--json").out)["cached models"] == ["a/b"]

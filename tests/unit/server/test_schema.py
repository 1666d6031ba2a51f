"""Requests made from the OpenAPI document, valid and invalid: no answer is a 5xx, each is as documented."""

import traceback
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from server_process import serving
from server_workers import Plan

pytestmark = pytest.mark.enable_socket

CHECKS = [not_a_server_error, response_schema_conformance]


# It is the server's thread that uses it, while a request is made up in this one.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
def test_every_operation_answers_as_documented(tmp_path: Path, fuzz_examples: int) -> None:
    quiet = settings(
        max_examples=fuzz_examples, deadline=None, derandomize=True, database=None,
        phases=(Phase.generate,), suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    wrong: dict[str, str] = {}
    with serving(tmp_path, Plan(), max_pending=100_000, max_count=4) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        # These streams end with the server, or with a job that is not there.
        operations = [each.ok() for each in schema.exclude(path_regex="/events$").get_all_operations()]
        assert len(operations) > 40
        for operation in operations:
            cases = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))

            def check(case: schemathesis.Case) -> None:
                case.validate_response(case.call(timeout=60), checks=CHECKS)

            try:
                quiet(given(cases)(check))()
            except Exception as error:  # all operations are tried before the test fails
                wrong[operation.label] = "".join(traceback.format_exception(error))[-1500:]
    assert not wrong, "\n\n".join(f"{label}: {error}" for label, error in wrong.items())

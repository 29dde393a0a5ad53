"""Salesforce's Bulk API 2.0: ingest jobs that upsert leads from CSV. They work by themselves, whoever looks on."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from demo.crm.faults import FaultBox
from demo.crm.salesforce_fields import DIGITS, FIELDS, KEY, Problem
from demo.crm.store import Store
from demo.crm.vendor import Request, Response, Route, now

MAX_UPLOAD = 100_000_000  # bytes: 150 MB in base64
MAX_FIELD, MAX_RECORD = 32_000, 400_000  # characters
CHUNK = 200  # records that are saved together
PAGE = 1000
PREFIX = "750Hs0"
USER = "005Hs0000000001AAA"
DELIMITERS = {"COMMA": ",", "SEMICOLON": ";", "PIPE": "|", "TAB": "\t", "CARET": "^", "BACKQUOTE": "`"}
LINE_ENDS = {"LF": "\n", "CRLF": "\r\n"}
ENDED = ("JobComplete", "Failed", "Aborted")
TRANSITIONS = {"UploadComplete": ("Open",), "Aborted": ("Open", "UploadComplete", "InProgress")}
SHOWN = (
    "id", "operation", "object", "createdById", "createdDate", "systemModstamp", "state", "concurrencyMode",
    "contentType", "apiVersion", "jobType", "lineEnding", "columnDelimiter",
)  # fmt: skip


class JobFailed(Exception):
    """What is wrong with all of a job."""


class BulkJobs:
    """The jobs of one organisation. `write` upserts one record and returns its result, or raises Problem."""

    def __init__(
        self, store: Store, faults: FaultBox, write: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    ) -> None:
        self._store = store
        self._faults = faults
        self._write = write

    # What clients ask ------------------------------------------------------------------------------------------

    def routes(self, path: str) -> list[Route]:
        """Those below this path; the answers raise Problem."""
        job = rf"{path}/(?P<job>\w+)"
        kind = r"(?P<kind>successfulResults|failedResults|unprocessed[rR]ecords)"
        return [
            ("POST", rf"{path}/?", self.create),
            ("GET", rf"{path}/?", self.all),
            ("GET", rf"{job}/?", self.show),
            ("PATCH", rf"{job}/?", self.change),
            ("DELETE", rf"{job}/?", self.delete),
            ("PUT", rf"{job}/batches/?", self.upload),
            ("GET", rf"{job}/{kind}/?", self.results),
        ]

    def create(self, request: Request) -> Response:
        asked = _object(request)
        known = {"operation", "object", "externalIdFieldName", "contentType", "lineEnding", "columnDelimiter"}
        if unknown := asked.keys() - known:
            raise Problem("JSON_PARSER_ERROR", f'Unrecognized field "{min(unknown)}"')
        if asked.get("object") != "Lead":
            raise Problem("INVALIDENTITY", f"Unable to find object: {asked.get('object')}")
        if asked.get("operation") != "upsert":
            raise Problem("INVALIDOPERATION", "this simulator knows the operation upsert only")
        if asked.get("externalIdFieldName") != KEY:
            raise Problem("INVALIDJOB", "External ID was not specified or is no external id field of the object")
        line_end, delimiter = asked.get("lineEnding", "LF"), asked.get("columnDelimiter", "COMMA")
        if asked.get("contentType", "CSV") != "CSV" or line_end not in LINE_ENDS or delimiter not in DELIMITERS:
            raise Problem("INVALIDJOB", "contentType is CSV, lineEnding LF or CRLF, columnDelimiter one of the six")
        at, version = now().replace("Z", "+0000"), request.params["version"]
        job = {
            "operation": "upsert", "object": "Lead", "createdById": USER, "createdDate": at, "systemModstamp": at,
            "state": "Open", "externalIdFieldName": KEY, "concurrencyMode": "Parallel", "contentType": "CSV",
            "apiVersion": float(version), "jobType": "V2Ingest", "lineEnding": line_end, "columnDelimiter": delimiter,
        }  # fmt: skip
        number = self._store.add_job(job)
        job["id"] = _job_id(number)
        self._keep(number, job)
        return Response(200, {
            **{name: job[name] for name in SHOWN}, "externalIdFieldName": KEY,
            "contentUrl": f"services/data/v{version}.0/jobs/ingest/{job['id']}/batches",
        })  # fmt: skip

    def all(self, request: Request) -> Response:
        """A page of all jobs, without their external id fields, as Salesforce's."""
        first = int(request.query.get("queryLocator", "0"))
        jobs = [job for _, job in self._store.jobs() if request.query.get("jobType", "V2Ingest") == job["jobType"]]
        done = len(jobs) <= first + PAGE
        more = f"/services/data/v{request.params['version']}.0/jobs/ingest?queryLocator={first + PAGE}"
        records = [{name: job[name] for name in SHOWN} for job in jobs[first : first + PAGE]]
        return Response(200, {"done": done, "records": records, "nextRecordsUrl": None if done else more})

    def show(self, request: Request) -> Response:
        _, job = self._job(request)
        return Response(200, self._document(job))

    def upload(self, request: Request) -> Response:
        number, job = self._job(request)
        if not request.headers.get("content-type", "").startswith("text/csv"):
            raise Problem("INVALIDCONTENTTYPE", "the data of a job is text/csv")
        if job["state"] != "Open":
            raise Problem("INVALIDJOBSTATE", f"the job is not open but {job['state']}")
        if "data" in job:
            raise Problem("CLIENTINPUTERROR", f"Found multiple contents for job: <{job['id']}>")
        if len(request.body) > MAX_UPLOAD:
            raise Problem("CLIENTINPUTERROR", "the data of a job is larger than 150 MB in base64")
        job["data"] = request.body.decode("utf-8", "replace")
        self._keep(number, job)
        return Response(201)

    def change(self, request: Request) -> Response:
        number, job = self._job(request)
        state = _object(request).get("state")
        if job["state"] not in TRANSITIONS.get(str(state), ()):
            raise Problem("INVALIDJOBSTATE", f"a job that is {job['state']} can't become {state}")
        if state == "UploadComplete":
            if "data" not in job:
                raise Problem("INVALIDJOBSTATE", "the job has no data")
            job |= {"closed": time.time(), "slow": self._faults.active.slow_job or 0}
            job |= {"done": 0, "succeeded": [], "failed": []}
        job |= {"state": state, "systemModstamp": now().replace("Z", "+0000")}
        self._keep(number, job)
        return Response(200, self._document(job))

    def delete(self, request: Request) -> Response:
        number, job = self._job(request)
        if job["state"] not in ENDED:
            raise Problem("INVALIDJOBSTATE", f"a job that is {job['state']} can't be deleted")
        self._store.forget_job(number)
        return Response(204)

    def results(self, request: Request) -> Response:
        _, job = self._job(request)
        if job["state"] not in ENDED:
            raise Problem("INVALIDJOBSTATE", f"the job is {job['state']}")
        kind = request.params["kind"].lower()
        columns, rows = _parsed(job) if "data" in job else ([], [])
        if kind == "unprocessedrecords":
            head, found = columns, rows[job.get("done", 0) :]
        else:
            name = "succeeded" if kind == "successfulresults" else "failed"
            head = ["sf__Id", "sf__Created" if name == "succeeded" else "sf__Error", *columns]
            found = [[crm_id, word, *rows[place]] for place, crm_id, word in job.get(name, [])]
        if found and self._faults.strikes("half_page"):
            found = found[: len(found) // 2]
        text = io.StringIO()
        delimiter, line_end = DELIMITERS[job["columnDelimiter"]], LINE_ENDS[job["lineEnding"]]
        csv.writer(text, delimiter=delimiter, lineterminator=line_end).writerows([head, *found])
        return Response(200, text.getvalue().encode(), {"Content-Type": "text/csv"})

    # What jobs do ----------------------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Goes on with every job as far as it is by now."""
        moment = time.time()
        for number, job in self._store.jobs(alive=True):
            if moment < job["closed"] + job["slow"]:
                continue
            with self._store.transaction():
                self._go_on(job, all_of=moment >= job["closed"] + 2 * job["slow"])
                self._keep(number, job)

    def _go_on(self, job: dict[str, Any], *, all_of: bool) -> None:
        try:
            columns, rows = _parsed(job)
            _check(job, columns, rows)
            half = (len(rows) + 1) // 2
            if job["state"] == "UploadComplete":
                job["state"] = "InProgress"
                self._process(job, columns, rows, half)
            if all_of:
                fault = self._faults.active.fail_job
                if fault and self._faults.strikes("fail_job"):
                    raise JobFailed(fault.message)
                self._process(job, columns, rows, len(rows))
                job["state"] = "JobComplete"
        except JobFailed as failed:
            job |= {"state": "Failed", "errorMessage": str(failed)}
        job["systemModstamp"] = now().replace("Z", "+0000")

    def _process(self, job: dict[str, Any], columns: list[str], rows: list[list[str]], end: int) -> None:
        place_of_key = columns.index(KEY)
        for first in range(job["done"], end, CHUNK):
            chunk = rows[first : min(first + CHUNK, end)]
            times = Counter(row[place_of_key] for row in chunk)
            for place, row in enumerate(chunk, first):
                given = [(name, value) for name, value in zip(columns, row, strict=True) if value]
                sent = {name: None if value == "#N/A" else value for name, value in given}
                try:
                    key = sent.pop(KEY, None)
                    if key is None:
                        raise Problem("MISSING_ARGUMENT", f"{KEY} not specified", KEY)
                    if times[key] > 1:
                        raise Problem("DUPLICATE_VALUE", f"Duplicate external id specified: {key}", KEY)
                    result = self._write(key, sent)
                    job["succeeded"].append((place, result["id"], str(result["created"]).lower()))
                except Problem as problem:
                    words = f"{problem.code}:{problem}:{' '.join(problem.fields)} --"
                    job["failed"].append((place, "", words))
        job["done"] = max(job["done"], end)

    def _keep(self, number: int, job: Mapping[str, Any]) -> None:
        self._store.keep_job(number, job, alive=job["state"] in ("UploadComplete", "InProgress"))

    def _job(self, request: Request) -> tuple[int, dict[str, Any]]:
        number = _number_of(request.params["job"])
        job = self._store.job(number)
        if job is None:
            raise Problem("NOT_FOUND", "The requested resource does not exist")
        return number, job

    def _document(self, job: Mapping[str, Any]) -> dict[str, Any]:
        told = {name: job[name] for name in (*SHOWN, "externalIdFieldName")}
        if "errorMessage" in job:
            told["errorMessage"] = job["errorMessage"]
        failed, succeeded = len(job.get("failed", ())), len(job.get("succeeded", ()))
        return {**told, "numberRecordsProcessed": failed + succeeded, "numberRecordsFailed": failed, "retries": 0}


def _parsed(job: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows. Raises JobFailed."""
    data, line_end = job["data"], LINE_ENDS[job["lineEnding"]]
    if "\r" in data if line_end == "\n" else "\n" in data.replace("\r\n", ""):
        raise JobFailed(
            f"ClientInputError : LineEnding is invalid on user data. Current LineEnding setting is {job['lineEnding']}"
        )
    try:
        reader = csv.reader(io.StringIO(data, newline=""), delimiter=DELIMITERS[job["columnDelimiter"]], strict=True)
        lines = [line for line in reader if line]
    except csv.Error:
        raise JobFailed("InvalidBatch : Failed to parse CSV") from None
    if not lines:
        raise JobFailed("InvalidBatch : Failed to read request header")
    return lines[0], lines[1:]


def _check(job: Mapping[str, Any], columns: list[str], rows: list[list[str]]) -> None:
    """Raises JobFailed for what no record of the job survives."""
    for name in columns:
        if name not in FIELDS:
            raise JobFailed(f"InvalidBatch : Field name not found : {name}")
    if KEY not in columns:
        raise JobFailed(f"InvalidBatch : Field name not found : {job['externalIdFieldName']}")
    for row in rows:
        if len(row) != len(columns):
            raise JobFailed("InvalidBatch : the number of values differs from that of the columns")
        if max(map(len, row)) > MAX_FIELD or sum(map(len, row)) > MAX_RECORD:
            raise JobFailed("InvalidBatch : a field or a record is too long")


def _object(request: Request) -> dict[str, Any]:
    try:
        document = request.json()
    except orjson.JSONDecodeError:
        raise Problem("JSON_PARSER_ERROR", "Unexpected input") from None
    if not isinstance(document, dict):
        raise Problem("JSON_PARSER_ERROR", "The body must be a JSON object")
    return document


def _job_id(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 62)
        digits = DIGITS[digit] + digits
    return f"{PREFIX}{digits.rjust(9, '0')}AAA"


def _number_of(job_id: str) -> int:
    """0 where it is nobody's."""
    number = 0
    if not job_id.startswith(PREFIX):
        return 0
    for digit in job_id[len(PREFIX) : 15]:
        number = number * 62 + DIGITS.index(digit)
    return number

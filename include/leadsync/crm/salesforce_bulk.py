"""Salesforce's Bulk API 2.0: thousands of leads in one job, upserted by external id, for a tenth of the requests.

A job is created, gets its CSV, is closed, and works by itself from then on, also when whoever closed it has died. So
a lead could go back: a job that is still queued would overwrite what was sent after it. That can't happen, for

- nothing else is sent for the leads of a job before it has ended: its state is looked at until then, and one that
  takes too long is aborted; an aborted job processes no more records;
- a load that gives up aborts its jobs, and where it can't, its destination stays marked as busy (`state/fence.py`);
- whoever finds the mark first waits until no request of the dead sender's can be under way, a close among them, and
  then aborts the jobs that it finds, before it claims or sends anything. A job that is only open by then is aborted
  too, and can't be closed any more. As long as one can't be aborted nobody sends.

Records that were being saved at the moment of an abort are waited for as long as for a request without an answer.
Jobs have no names. Those found are Leadsync's by the external id field that they upsert by: no other tool has it.
"""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, repeat
from operator import itemgetter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, TypeAdapter

from leadsync.crm.base import BatchRefused, batches, excerpt
from leadsync.crm.http import Reply, RequestFailed
from leadsync.errors import AccessError, QuotaExceeded, Unavailable
from leadsync.models import Lead, Outcome, Status

if TYPE_CHECKING:
    from leadsync.crm.salesforce import Salesforce

T = TypeVar("T")

ROWS = 10_000  # leads in a job: Salesforce cuts larger ones into batches of so many
# Salesforce takes 100 MB. The results are as large again, both are held in memory, and one request sends it all.
UPLOAD_BYTES = 8_000_000
FIELD_LENGTH, RECORD_LENGTH = 32_000, 400_000  # characters that a job takes; single records may have longer fields
NULL = "#N/A"  # an empty value leaves the field as it is
UNSAID = object()  # no value at all, for a field that other leads have
PLAIN = frozenset({str, int, float, bool, type(None)})  # the types of values that a CSV can say
FIRST_WAIT, LONGEST_WAIT = 1.0, 10.0  # seconds between two looks at a job
READ_WAITS = (1.0, 2.0, 4.0)  # seconds before a reading that failed in passing is tried again

DISABLED = "FEATURENOTENABLED"
OPEN, CLOSED, COMPLETE, ABORTED = "Open", "UploadComplete", "JobComplete", "Aborted"
ENDED = frozenset({COMPLETE, ABORTED, "Failed"})
NO_SUCH_FIELD = re.compile(r"Field name not found : ([\w.]+)")
SPENT = re.compile(r"ExceededQuota|Limit exceeded")
ERROR = re.compile(r"(?P<code>[A-Z_]+):(?P<message>.*?)(?::(?P<fields>[\w, ]*)--)?", re.DOTALL)


class _Job(BaseModel):
    id: str
    state: str
    object: str = ""
    operation: str = ""
    externalIdFieldName: str | None = None
    numberRecordsFailed: int | None = None
    errorMessage: str | None = None


class _Page(BaseModel):
    records: list[_Job]
    done: bool
    nextRecordsUrl: str | None = None


JOB = TypeAdapter(_Job)
PAGE = TypeAdapter(_Page)


class Bulk:
    """The jobs of one adapter. `jobs` are the ids of those that may be at work.

    `call` sends as `Salesforce` does, `refused` says what an error of one record means, `upsert_few` upserts at most
    `max_batch` leads without a job.
    """

    def __init__(
        self,
        crm: Salesforce,
        call: Callable[..., Reply],
        refused: Callable[[str, str, str, Sequence[str]], Outcome],
        upsert_few: Callable[[Sequence[Lead]], list[Outcome]],
    ) -> None:
        self._crm = crm
        self._call = call
        self._refused = refused
        self._upsert_few = upsert_few
        self.jobs: set[str] = set()

    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        """In one job, or a few where that would be too large; leads that no job takes go without one."""
        outcomes: dict[str, Outcome] = {}
        for part, upload in _uploads(self._crm.destination.external_id_field, leads):
            outcomes |= self._crm.attempt(self._runner(upload), part)
        rest = [lead for lead in leads if lead.external_id not in outcomes]
        return [*outcomes.values(), *self._without_a_job(rest)]

    def end(self) -> bool:
        """See `CRMAdapter.end_work`."""
        jobs = [self._look(job_id) for job_id in sorted(self.jobs)] or self._left_behind()
        begun = [self._abort(job) for job in jobs if job.state not in ENDED]
        self.jobs.clear()
        return any(begun)

    # One job ---------------------------------------------------------------------------------------------------

    def _runner(self, upload: bytes) -> Callable[[Sequence[Lead]], list[Outcome]]:
        return lambda leads: self._run(leads, upload)

    def _run(self, leads: Sequence[Lead], upload: bytes) -> list[Outcome]:
        target = self._crm.destination
        job = None
        try:
            job = self._call("POST", "/jobs/ingest", json={
                "operation": "upsert", "object": target.object, "externalIdFieldName": target.external_id_field,
                "contentType": "CSV", "lineEnding": "LF", "columnDelimiter": "COMMA",
            }).parse(JOB)  # fmt: skip
            self.jobs.add(job.id)
            self._call(
                "PUT",
                f"/jobs/ingest/{job.id}/batches",
                body=upload,
                headers={"Content-Type": "text/csv; charset=UTF-8"},
            )
            job = self._process(job)
        except BatchRefused:
            # Of no lead: a job that Salesforce does not want, for one reason or another. It may want the leads.
            if job is not None and self._abort(self._look(job.id)):
                return [Outcome(lead.external_id, Status.TRANSIENT, code="timeout") for lead in leads]
            return self._without_a_job(leads)
        except RequestFailed as failed:
            if failed.reply is None:
                raise
            # No lead was in the request, so none need be looked for in the reply: among thousands that takes long.
            words = excerpt(failed.reply, ())
            return [Outcome(lead.external_id, Status.TRANSIENT, None, failed.code, None, words) for lead in leads]
        return self._outcomes(job, leads)

    def _process(self, job: _Job) -> _Job:
        """Closes the job and waits for its end; one that takes too long is aborted."""
        until = time.monotonic() + self._crm.settings.bulk_timeout
        wait = FIRST_WAIT
        while job.state not in ENDED:
            if time.monotonic() > until:
                self._abort(job)
                return job.model_copy(update={"state": ABORTED, "numberRecordsFailed": None})
            if job.state == OPEN:
                with suppress(RequestFailed):  # whether it arrived all the same is what the job itself tells
                    self._change(job, CLOSED)
            self._crm.http.sleep(wait)
            wait = min(wait * 1.5, LONGEST_WAIT)
            job = self._look(job.id)
        self.jobs.discard(job.id)
        return job

    def _outcomes(self, job: _Job, leads: Sequence[Lead]) -> list[Outcome]:
        """Of every lead that the job's results name, and of the others unless they should be named."""
        told = [
            Outcome(external_id, Status.CREATED if created == "true" else Status.UPDATED, crm_id)
            for external_id, crm_id, created in self._rows(job, "successfulResults", "sf__Id", "sf__Created")
        ]
        if job.numberRecordsFailed != 0:
            for external_id, words in self._rows(job, "failedResults", "sf__Error"):
                told.append(self._refused(external_id, *_error(words)))
        if job.state == COMPLETE:
            return told
        code = self._why(job)
        named = {outcome.external_id for outcome in told}
        rest = [lead.external_id for lead in leads if lead.external_id not in named]
        return told + [Outcome(external_id, Status.TRANSIENT, code=code) for external_id in rest]

    def _why(self, job: _Job) -> str:
        """The code of leads that an unfinished job did not process. Raises what is no fault of theirs."""
        words = job.errorMessage or ""
        if job.state == ABORTED:
            return "timeout"  # some may be on their way into the CRM, so they count as sent and unanswered
        if unknown := NO_SUCH_FIELD.search(words):
            raise self._crm.missing("InvalidBatch", unknown[1])
        if SPENT.search(words):
            raise QuotaExceeded(f"{self._crm.who}: the limit of Bulk API batches in 24 hours is spent")
        code = re.match(r"\w+", words)
        return code[0] if code else "job_failed"

    def _rows(self, job: _Job, kind: str, *columns: str) -> list[tuple[str, ...]]:
        """External id and these columns of one kind of results."""
        wanted = [self._crm.destination.external_id_field, *columns]

        def parse(reply: Reply) -> list[tuple[str, ...]]:
            # Line by line: as a whole it would take ten times the memory.
            rows = csv.reader(
                (line.decode("utf-8-sig").replace("\0", "\ufffd") for line in io.BytesIO(reply.body)), strict=True
            )
            try:
                header = next(rows, [])
                pick = itemgetter(*map(header.index, wanted))
                found = []
                for row in filter(None, rows):
                    if len(row) != len(header):
                        raise ValueError
                    found.append(pick(row))
            except (ValueError, csv.Error):  # nothing of it is kept: it is made of leads
                raise RequestFailed("the results of a bulk job make no sense", "malformed_reply") from None
            return found

        try:
            return self._read(f"/jobs/ingest/{job.id}/{kind}", parse, headers={"Accept": "text/csv"})
        except BatchRefused:  # of a job that was aborted: its leads are then named nowhere
            return []

    def _without_a_job(self, leads: Sequence[Lead]) -> list[Outcome]:
        parts = batches(leads, self._crm.max_batch)
        return [told for part in parts for told in self._crm.attempt(self._upsert_few, part).values()]

    # Jobs ------------------------------------------------------------------------------------------------------

    def _left_behind(self) -> list[_Job]:
        """Unfinished jobs that upsert into the destination's object by its external id field."""
        target = self._crm.destination
        found: list[_Job] = []
        try:
            page = self._read("/jobs/ingest", _parser(PAGE), params={"jobType": "V2Ingest"})
        except BatchRefused as refused:
            if refused.code.upper() != DISABLED:
                raise
            return []  # where there is no Bulk API there are no jobs
        while True:
            found += page.records
            if page.done:
                break
            if not page.nextRecordsUrl:
                raise self._crm.left_out()
            page = self._read(page.nextRecordsUrl, _parser(PAGE))
        alive = [job for job in found if job.state not in ENDED and job.operation == "upsert"]
        # The list does not say by which field.
        looked = [self._look(job.id) for job in alive if _same(job.object, target.object)]
        return [job for job in looked if _same(job.externalIdFieldName or "", target.external_id_field)]

    def _look(self, job_id: str) -> _Job:
        try:
            return self._read(f"/jobs/ingest/{job_id}", _parser(JOB))
        except BatchRefused as refused:
            raise Unavailable(f"{self._crm.who} does not tell of the bulk job {job_id} ({refused.code})") from None

    def _change(self, job: _Job, state: str) -> None:
        self._call("PATCH", f"/jobs/ingest/{job.id}", json={"state": state})

    def _abort(self, job: _Job) -> bool:
        """Whether the job may have begun. Raises Unavailable when it goes on."""
        try:
            self._change(job, ABORTED)
        except (
            BatchRefused,
            AccessError,
            RequestFailed,
        ) as refused:  # it has ended, it is another user's, or nobody knows
            if self._look(job.id).state not in ENDED:
                raise Unavailable(
                    f"{self._crm.who}: the bulk job {job.id} is at work and can't be aborted ({refused}); abort it in "
                    "Salesforce's Setup under Bulk Data Load Jobs, or wait for its end"
                ) from None
        self.jobs.discard(job.id)
        return job.state != OPEN

    def _read(self, path: str, parse: Callable[[Reply], T], **options: Any) -> T:
        """Tried again when it fails in passing: a job is too much to lose to one reply that did not come."""
        for wait in READ_WAITS:
            try:
                return parse(self._call("GET", path, **options))
            except RequestFailed:
                self._crm.http.sleep(wait)
        return parse(self._call("GET", path, **options))


# CSV -----------------------------------------------------------------------------------------------------------


def _uploads(external_id_field: str, leads: Sequence[Lead]) -> Iterator[tuple[list[Lead], bytes]]:
    """The leads of each job, and its CSV; those that a CSV can't say are in none."""
    leads = [lead for lead in leads if PLAIN.issuperset(map(type, lead.fields.values()))]
    columns = list(dict.fromkeys(chain.from_iterable(lead.fields for lead in leads)))
    lines: list[str] = []  # the one that csv has just written
    write = csv.writer(SimpleNamespace(write=lines.append), lineterminator="\n").writerow
    write([external_id_field, *columns])
    header = lines.pop().encode()
    part, upload = list[Lead](), bytearray(header)
    for lead in leads:
        write([lead.external_id, *map(_text, map(lead.fields.get, columns, repeat(UNSAID)))])
        text = lines.pop()
        if not _is_fit(lead, text):
            continue
        line = text.encode()
        if part and len(upload) + len(line) > UPLOAD_BYTES:
            yield part, bytes(upload)
            part, upload = [], bytearray(header)
        part.append(lead)
        upload += line
    if part:
        yield part, bytes(upload)


def _is_fit(lead: Lead, line: str) -> bool:
    """Whether a CSV can say it: a text that reads as no value can't be told from one, and a carriage return within
    a text is taken for a line end of the wrong kind. And whether the record, and each field, is short enough."""
    if "\r" in line or NULL in lead.fields.values() or lead.external_id == NULL:
        return False
    if len(line) <= FIELD_LENGTH:
        return True
    texts = [lead.external_id, *(value for value in lead.fields.values() if isinstance(value, str))]
    return max(map(len, texts)) <= FIELD_LENGTH and sum(map(len, texts)) <= RECORD_LENGTH


def _same(one: str, other: str) -> bool:
    """Whether it is one name: Salesforce does not mind the case."""
    return one.casefold() == other.casefold()


def _text(value: object) -> object:
    """As a job reads it; what else there is csv writes well."""
    if value is None or value == "":
        return NULL
    if value is True or value is False:
        return "true" if value else "false"
    return "" if value is UNSAID else value


def _error(words: str) -> tuple[str, str, list[str]]:
    """Code, message and fields of `CODE:message:fields --`."""
    found = ERROR.fullmatch(words.strip())
    if found is None:
        return "", words, []
    return found["code"], found["message"], re.findall(r"\w+", found["fields"] or "")


def _parser(shape: TypeAdapter[T]) -> Callable[[Reply], T]:
    return lambda reply: reply.parse(shape)

/* Salesforce's Bulk API 2.0, as far as upserts from CSV go. A job has done its work by the first look at it.

     POST  .../jobs/ingest                        {"operation": "upsert", "externalIdFieldName": "KEY", ...}
     PUT   .../jobs/ingest/JOB/batches            the CSV, once
     PATCH .../jobs/ingest/JOB                    {"state": "UploadComplete"} or "Aborted"
     GET   .../jobs/ingest/JOB                    its state
     GET   .../jobs/ingest/JOB/successfulResults  each row with `sf__Id` and `sf__Created`; failedResults: none

   A job fails as a whole, and none of its rows is counted, unless each row has as many values as the header and a key. */
#define _GNU_SOURCE
#include "crm.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct job {
    enum { OPEN, COMPLETE, FAILED, ABORTED } state;
    char key[80];          /* the external id field */
    struct buffer upload;  /* until it is closed */
    struct buffer results;
    size_t rows;
} *jobs;
static size_t job_count, job_room;

static const char *const STATES[] = {"Open", "JobComplete", "Failed", "Aborted"};

void forget_jobs(void) {
    for (size_t i = 0; i < job_count; i++) free(jobs[i].upload.data), free(jobs[i].results.data);
    job_count = 0;
}

/* Copies the text of a member of a flat JSON object; 0 when it is not there, or too long. */
static int member(const struct request *asked, const char *name, char *text, size_t size) {
    char wanted[80];
    int length = snprintf(wanted, sizeof wanted, "\"%s\":\"", name);
    const char *found = memmem(asked->content, asked->length, wanted, length);
    if (!found) return 0;
    found += length;
    const char *end = memchr(found, '"', asked->content + asked->length - found);
    if (!end || (size_t)(end - found) >= size) return 0;
    memcpy(text, found, end - found);
    text[end - found] = 0;
    return 1;
}

/* The next value of a line, without its quotes; moves on to its end. 0 when its quotes do not match. */
static int value(const char **at, const char *end, const char **text, size_t *length) {
    if (*at < end && **at == '"') {
        const char *from = ++*at;
        while ((*at = memchr(*at, '"', end - *at))) {
            if (*at + 1 == end || (*at)[1] != '"') break;
            *at += 2;
        }
        if (!*at) return 0;
        *text = from, *length = (*at)++ - from;
    } else {
        *text = *at;
        while (*at < end && **at != ',' && **at != '\n') ++*at;
        *length = *at - *text;
    }
    return *at < end && (**at == ',' || **at == '\n');
}

/* Goes over all rows, and with `count` counts each and writes its result; 0 when they are not as they should be. */
static int rows(struct job *job, int count) {
    const char *at = job->upload.data, *end = at + job->upload.used, *text;
    size_t columns = 0, place = 0, length, key_length = strlen(job->key);
    job->rows = 0;
    for (int header = 1; at < end; header = 0) {
        const char *line = at, *key = NULL;
        size_t column = 0, found = 0;
        do {
            if (!value(&at, end, &text, &length)) return 0;
            if (header && length == key_length && !memcmp(text, job->key, length)) key = text, place = column;
            if (!header && column == place) key = text, found = length;
            column++;
        } while (*at++ == ',');
        if (header) columns = column;
        if (!key || column != columns || (!header && (!found || memchr(key, '"', found)))) return 0;
        if (!header) job->rows++;
        if (!count) continue;
        char head[60] = "\"sf__Id\",\"sf__Created\",";
        if (!header) snprintf(head, sizeof head, "\"00Q%015lu\",\"false\",", count_record(key, found));
        say(&job->results, head);
        put(&job->results, line, at - line);
    }
    return columns > 0;
}

static void describe(const struct job *job, struct buffer *body) {
    char text[300];
    snprintf(text, sizeof text,
        "{\"id\": \"750%015zu\", \"operation\": \"upsert\", \"object\": \"Lead\", \"state\": \"%s\", \"contentType\": \"CSV\", "
        "\"externalIdFieldName\": \"%s\", \"numberRecordsProcessed\": %zu, \"numberRecordsFailed\": 0}",
        job - jobs + (size_t)1, STATES[job->state], job->key, job->state == COMPLETE ? job->rows : 0);
    say(body, text);
}

static const char *create(const struct request *asked, struct buffer *body) {
    char text[80], key[80];
    int right = member(asked, "operation", text, sizeof text) && !strcmp(text, "upsert")
        && member(asked, "contentType", text, sizeof text) && !strcmp(text, "CSV")
        && member(asked, "lineEnding", text, sizeof text) && !strcmp(text, "LF")
        && member(asked, "columnDelimiter", text, sizeof text) && !strcmp(text, "COMMA")
        && member(asked, "externalIdFieldName", key, sizeof key) && *key;
    if (!right) return NULL;
    if (job_count == job_room) {
        job_room = job_room * 2 + 64;
        jobs = realloc(jobs, job_room * sizeof *jobs);
        if (!jobs) abort();
    }
    struct job *job = &jobs[job_count++];
    memset(job, 0, sizeof *job);
    strcpy(job->key, key);
    describe(job, body);
    return "200 OK";
}

static const char *change(struct job *job, const struct request *asked, struct buffer *body) {
    char state[80];
    if (job->state != OPEN || !member(asked, "state", state, sizeof state)) return NULL;
    if (!strcmp(state, "Aborted")) job->state = ABORTED;
    else if (strcmp(state, "UploadComplete") || !job->upload.used) return NULL;
    else if (rows(job, 0)) rows(job, 1), job->state = COMPLETE;
    else job->state = FAILED;
    free(job->upload.data);
    job->upload = (struct buffer){NULL, 0, 0};
    describe(job, body);
    return "200 OK";
}

const char *bulk(const struct request *asked, struct buffer *body, const char **type) {
    const char *rest = strstr(asked->target, "/jobs/ingest") + strlen("/jobs/ingest");
    if (!*rest) return strcmp(asked->method, "POST") ? NULL : create(asked, body);
    char *end;
    size_t number = strncmp(rest, "/750", 4) ? 0 : strtoul(rest + 4, &end, 10);
    if (!number || number > job_count) return NULL;
    struct job *job = &jobs[number - 1];
    if (!*end && !strcmp(asked->method, "PATCH")) return change(job, asked, body);
    if (!strcmp(end, "/batches") && !strcmp(asked->method, "PUT")) {
        if (job->state != OPEN || job->upload.used || !strcasestr(asked->headers, "\r\ncontent-type: text/csv")) return NULL;
        put(&job->upload, asked->content, asked->length);
        return "201 Created";
    }
    if (strcmp(asked->method, "GET")) return NULL;
    if (!*end) return describe(job, body), "200 OK";
    if (job->state == OPEN) return NULL;
    *type = "text/csv";
    if (!strcmp(end, "/successfulResults")) put(body, job->results.data, job->results.used);
    else if (!strcmp(end, "/failedResults")) say(body, "\"sf__Id\",\"sf__Error\"\n");
    else return NULL;
    return "200 OK";
}

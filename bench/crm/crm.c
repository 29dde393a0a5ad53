/* A CRM that is never the bottleneck: one thread, epoll, HTTP/1.1 with keep-alive, nothing but the C library.

   cc -O2 -o crm *.c && ./crm PORT [latency_ms=50] [limit=190 window_s=10]
   cc -O2 -DTLS -o crm *.c -lssl -lcrypto && ./crm PORT certificate=PEM ...

   It takes what HubSpot, Salesforce and a plain JSON API take, and counts each record by its key, so that a benchmark can tell
   that every lead arrived, and arrived once:

     POST  .../batch/upsert                     {"inputs": [{"id": "1", ...}, ...]}           HubSpot, at most 100
     PATCH .../composite/sobjects/OBJECT/KEY    {"records": [{"KEY": "1", ...}, ...]}         Salesforce, at most 200
     .../jobs/ingest                            see bulk.c                                   Salesforce, any number
     POST  .../rows                             [{"key": "1", ...}, ...]                      any number
     POST  .../oauth2/token                                                                  Salesforce's login
     GET   /_stats                              counters; POST /_reset forgets them
     POST  /_config?latency_ms=50&limit=190     changes the options

   `latency_ms` is how long each answer is held back; `limit` is how many requests it takes in any window of `window_s`
   seconds, the others get a 429 with Retry-After. In /_stats `keysum` is the sum of the FNV-1a hashes of all keys, in no
   order: the same number of records and the same keysum as expected mean the same leads. `taken` is the number of requests
   that were not throttled, `seconds` the time from the first of them to the last. */
#define _GNU_SOURCE
#include "crm.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct connection {
    int fd;
    void *tls;
    struct buffer in, out;
    size_t sent;
    double due;                    /* when the answer in `out` leaves; 0: there is none */
    struct connection *next;       /* in the queue of answers that wait, oldest first */
    struct connection *dead;       /* in the list of those that have hung up */
};

static double latency, window = 10, *taken_at; /* when the last `limit` requests were taken, a ring */
static size_t limit, ring_used;
static struct {
    uint64_t requests, records, refused, throttled, taken, bytes, keysum, at_once, most_at_once;
    double first, last;
} stats;
static struct connection *oldest, **newest = &oldest, *graves;
static int events, port, over_tls;

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec * 1e-9;
}

void put(struct buffer *to, const char *text, size_t length) {
    if (!length) return;
    if (to->used + length > to->size) {
        to->size = (to->used + length) * 2;
        to->data = realloc(to->data, to->size);
        if (!to->data) abort();
    }
    memcpy(to->data + to->used, text, length);
    to->used += length;
}

void say(struct buffer *to, const char *text) { put(to, text, strlen(text)); }

static uint64_t hash(const char *text, size_t length) {
    uint64_t value = 1469598103934665603ULL;
    while (length--) value = (value ^ (unsigned char)*text++) * 1099511628211ULL;
    return value;
}

uint64_t count_record(const char *key, size_t length) {
    stats.keysum += hash(key, length);
    return ++stats.records;
}

static double option(const char *target, const char *name, double otherwise) {
    char wanted[40];
    snprintf(wanted, sizeof wanted, "%s=", name);
    const char *found = strstr(target, wanted);
    return found ? atof(found + strlen(wanted)) : otherwise;
}

static void configure(const char *target) {
    latency = option(target, "latency_ms", latency * 1e3) / 1e3;
    limit = option(target, "limit", limit);
    window = option(target, "window_s", window);
    taken_at = realloc(taken_at, (limit + 1) * sizeof *taken_at);
    if (!taken_at) abort();
    ring_used = 0;
}

static void answer_with(struct connection *to, const char *status, const char *type, const char *headers, struct buffer *body) {
    char head[300];
    int length = snprintf(head, sizeof head,
        "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%s\r\n", status, type, body->used, headers);
    put(&to->out, head, length);
    put(&to->out, body->data, body->used);
}

static void answer(struct connection *to, const char *status, const char *headers, struct buffer *body) {
    answer_with(to, status, "application/json", headers, body);
}

static void refuse(struct connection *to, struct buffer *body) {
    stats.refused++;
    say(body, "{\"status\": \"error\", \"category\": \"VALIDATION_ERROR\", \"message\": \"not what this API takes\"}");
    answer(to, "400 Bad Request", "", body);
}

static int throttled(struct connection *to, struct buffer *body) {
    double at = now();
    if (limit) {
        double *oldest_taken = &taken_at[ring_used % limit];
        if (ring_used >= limit && *oldest_taken + window > at) {
            stats.throttled++;
            char headers[60];
            snprintf(headers, sizeof headers, "Retry-After: %d\r\n", (int)(*oldest_taken + window - at) + 1);
            say(body, "{\"status\": \"error\", \"message\": \"too many requests\", \"policyName\": \"TEN_SECONDLY_ROLLING\"}");
            answer(to, "429 Too Many Requests", headers, body);
            return 1;
        }
        *oldest_taken = at;
        ring_used++;
    }
    if (!stats.taken++) stats.first = at;
    stats.last = at;
    return 0;
}

static void take(struct connection *to, const struct request *asked, struct buffer *body) {
    const char *type = "application/json";
    const char *status = (strstr(asked->target, "/jobs/ingest") ? bulk : records)(asked, body, &type);
    if (status) answer_with(to, status, type, "", body);
    else refuse(to, body);
}

/* Answers one request; 0 when its answer is to be held back. */
static int handle(struct connection *to, const struct request *asked) {
    const char *target = asked->target;
    static struct buffer body;
    body.used = 0;
    say(&body, "");
    if (!strncmp(target, "/_", 2)) {
        char text[400];
        if (!strncmp(target, "/_reset", 7)) memset(&stats, 0, sizeof stats), forget_jobs();
        if (!strncmp(target, "/_config", 8)) configure(target);
        snprintf(text, sizeof text,
            "{\"requests\": %lu, \"records\": %lu, \"refused\": %lu, \"throttled\": %lu, \"taken\": %lu, \"seconds\": %.3f, "
            "\"bytes\": %lu, \"keysum\": \"%016lx\", \"most_at_once\": %lu}",
            stats.requests, stats.records, stats.refused, stats.throttled, stats.taken, stats.last - stats.first,
            stats.bytes, stats.keysum, stats.most_at_once);
        say(&body, text);
        answer(to, "200 OK", "", &body);
        return 1;
    }
    if (strstr(target, "/oauth2/token")) {
        char text[120];
        snprintf(text, sizeof text, "{\"access_token\": \"bench\", \"instance_url\": \"http%s://127.0.0.1:%d\"}",
                 over_tls ? "s" : "", port);
        say(&body, text);
        answer(to, "200 OK", "", &body);
        return 1;
    }
    stats.requests++;
    stats.bytes += asked->length;
    if (++stats.at_once > stats.most_at_once) stats.most_at_once = stats.at_once;
    if (!throttled(to, &body)) take(to, asked, &body);
    return 0;
}

static void hang_up(struct connection *gone) {
    if (gone->fd < 0) return;
    if (gone->tls) tls_close(gone->tls);
    close(gone->fd);
    gone->fd = -1;
    gone->dead = graves;
    graves = gone;
}

/* Frees those that have hung up, once nobody holds them: not in the middle of a round, nor while an answer waits. */
static void bury(void) {
    for (struct connection **at = &graves; *at;) {
        struct connection *gone = *at;
        if (gone->due > 0) { at = &gone->dead; continue; }
        *at = gone->dead;
        free(gone->in.data);
        free(gone->out.data);
        free(gone);
    }
}

static void flush(struct connection *to) {
    while (to->sent < to->out.used) {
        const char *from = to->out.data + to->sent;
        size_t left = to->out.used - to->sent;
        ssize_t written = to->tls ? tls_send(to->tls, from, left) : send(to->fd, from, left, MSG_NOSIGNAL);
        if (written < 0) {
            if (errno != EAGAIN) { hang_up(to); return; }
            struct epoll_event both = {.events = EPOLLIN | EPOLLOUT, .data.ptr = to};
            epoll_ctl(events, EPOLL_CTL_MOD, to->fd, &both);
            return;
        }
        to->sent += written;
    }
    to->sent = to->out.used = 0;
}

/* Handles the requests that have arrived whole, one at a time: a client that waits for its answer sends no other. */
static void consume(struct connection *from) {
    while (from->fd >= 0 && from->due == 0 && from->in.used) {
        char *head_end = memmem(from->in.data, from->in.used, "\r\n\r\n", 4);
        if (!head_end) return;
        *head_end = 0;
        size_t head = head_end + 4 - from->in.data, length = 0;
        const char *field = strcasestr(from->in.data, "\r\ncontent-length:");
        if (field) length = strtoul(field + 17, NULL, 10);
        if (from->in.used < head + length) { *head_end = '\r'; return; }
        char *target = strchr(from->in.data, ' ');
        if (!target) { hang_up(from); return; }
        char *target_end = strchr(++target, ' ');
        if (!target_end) { hang_up(from); return; }
        *target_end = target[-1] = 0;
        int at_once = handle(from, &(struct request){from->in.data, target, target_end + 1, from->in.data + head, length});
        from->in.used -= head + length;
        memmove(from->in.data, from->in.data + head + length, from->in.used);
        if (!at_once && latency > 0) {
            from->due = now() + latency;
            from->next = NULL;
            *newest = from;
            newest = &from->next;
            return;
        }
        if (!at_once) stats.at_once--;
        flush(from);
    }
}

/* Sends the answers whose time has come; seconds until the next, -1 when none waits. */
static double release(void) {
    double at = now();
    while (oldest && oldest->due <= at) {
        struct connection *to = oldest;
        oldest = to->next;
        if (!oldest) newest = &oldest;
        to->due = 0;
        stats.at_once--;
        if (to->fd < 0) continue;
        flush(to);
        consume(to);
    }
    return oldest ? oldest->due - at : -1;
}

static void receive(struct connection *from) {
    static char piece[1 << 18];
    ssize_t got = from->tls ? tls_receive(from->tls, piece, sizeof piece) : recv(from->fd, piece, sizeof piece, 0);
    if (got <= 0) {
        if (got < 0 && errno == EAGAIN) return;
        hang_up(from);
        return;
    }
    put(&from->in, piece, got);
    put(&from->in, "", 1); /* so that the head can be searched as a string */
    from->in.used--;
    consume(from);
}

static void accept_all(int listener) {
    int fd, yes = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct connection *new = calloc(1, sizeof *new);
        new->fd = fd;
        if (over_tls) new->tls = tls_accept(fd);
        struct epoll_event in = {.events = EPOLLIN, .data.ptr = new};
        epoll_ctl(events, EPOLL_CTL_ADD, fd, &in);
    }
}

int main(int count, char **arguments) {
    if (count < 2) return fprintf(stderr, "crm PORT [certificate=PEM] [latency_ms=0] [limit=0] [window_s=10]\n"), 2;
    for (int i = 2; i < count; i++)
        if (!strncmp(arguments[i], "certificate=", 12)) tls_start(arguments[i] + 12), over_tls = 1;
        else configure(arguments[i]);
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port = atoi(arguments[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1024)) return perror("crm"), 1;
    fcntl(listener, F_SETFL, O_NONBLOCK);
    events = epoll_create1(0);
    struct epoll_event in = {.events = EPOLLIN, .data.ptr = NULL}, ready[64];
    epoll_ctl(events, EPOLL_CTL_ADD, listener, &in);
    for (;;) {
        double wait = release();
        struct timespec at_most = {(time_t)wait, (long)((wait - (time_t)wait) * 1e9)};
        int found = epoll_pwait2(events, ready, 64, wait < 0 ? NULL : &at_most, NULL);
        for (int i = 0; i < found; i++) {
            struct connection *from = ready[i].data.ptr;
            if (!from) accept_all(listener);
            else if (from->fd < 0) continue;
            else if (ready[i].events & EPOLLOUT) {
                struct epoll_event again = {.events = EPOLLIN, .data.ptr = from};
                epoll_ctl(events, EPOLL_CTL_MOD, from->fd, &again);
                flush(from);
            } else receive(from);
        }
        bury();
    }
}

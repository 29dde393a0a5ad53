/* What the files of the CRM share. */
#ifndef CRM_H
#define CRM_H
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct buffer { char *data; size_t used, size; };

/* What a request asks: the header lines are one string. */
struct request { const char *method, *target, *headers, *content; size_t length; };

void put(struct buffer *to, const char *text, size_t length);
void say(struct buffer *to, const char *text);

/* Counts one record by its key; returns how many there are now. */
uint64_t count_record(const char *key, size_t length);

/* records.c and bulk.c. Write the answer and return its status, NULL for what they do not take; `type` is the body's. */
const char *records(const struct request *asked, struct buffer *body, const char **type);
const char *bulk(const struct request *asked, struct buffer *body, const char **type);
void forget_jobs(void);

/* tls.c. `certificate` is a PEM file with the key in it. */
void tls_start(const char *certificate);
void *tls_accept(int fd);
ssize_t tls_receive(void *session, char *to, size_t size);
ssize_t tls_send(void *session, const char *from, size_t size);
void tls_close(void *session);
#endif

/* Records that come as JSON, many in a request: of HubSpot, of Salesforce, and of a plain API. */
#define _GNU_SOURCE
#include "crm.h"
#include <stdio.h>
#include <string.h>

static struct key { const char *text; size_t length; } keys[200000];

/* The end of the JSON string that begins behind its quote; NULL when there is none. */
static const char *string_end(const char *at, const char *end) {
    while ((at = memchr(at, '"', end - at))) {
        size_t escapes = 0;
        while (at[-1 - escapes] == '\\') escapes++;
        if (escapes % 2 == 0) return at;
        at++;
    }
    return NULL;
}

/* Finds the objects at `depth`, and in each of them the text of its member `name`; how many, or -1 for what is no JSON. */
static int find_keys(const char *at, size_t length, int depth, const char *name) {
    const char *end = at + length;
    size_t name_length = strlen(name);
    int level = 0, found = 0, wanted = 0;
    for (; at < end; at++) {
        if (*at == '{' || *at == '[') {
            if (++level == depth && *at == '{') {
                if (found == (int)(sizeof keys / sizeof *keys)) return -1;
                keys[found++] = (struct key){NULL, 0};
            }
        } else if (*at == '}' || *at == ']') {
            level--;
        } else if (*at == '"') {
            const char *text = at + 1;
            at = string_end(text, end);
            if (!at) return -1;
            if (level != depth || !found) continue;
            if (at + 1 < end && at[1] == ':') {
                wanted = (size_t)(at - text) == name_length && !memcmp(text, name, name_length);
                at++;
            } else if (wanted) {
                keys[found - 1] = (struct key){text, at - text};
                wanted = 0;
            }
        }
    }
    return level == 0 ? found : -1;
}

const char *records(const struct request *asked, struct buffer *body, const char **type) {
    (void)type; /* JSON, as the caller has it */
    const char *target = asked->target;
    static char name[80];
    const char *salesforce = strstr(target, "/composite/sobjects/");
    int hubspot = strstr(target, "/batch/upsert") != NULL, most = hubspot ? 100 : salesforce ? 200 : (int)1e9;
    snprintf(name, sizeof name, "%s", hubspot ? "id" : salesforce ? strrchr(target, '/') + 1 : "key");
    int found = find_keys(asked->content, asked->length, hubspot || salesforce ? 3 : 2, name);
    if (found < 1 || found > most) return NULL;
    for (int i = 0; i < found; i++)
        if (!keys[i].text) return NULL;
    if (hubspot) say(body, "{\"status\": \"COMPLETE\", \"results\": [");
    else if (salesforce) say(body, "[");
    char text[200];
    for (int i = 0; i < found; i++) {
        uint64_t number = count_record(keys[i].text, keys[i].length);
        if (hubspot) {
            snprintf(text, sizeof text, "%s{\"id\": \"%lu\", \"new\": false, \"objectWriteTraceId\": \"%d\"}",
                     i ? ", " : "", 1000000 + number, i);
            say(body, text);
        } else if (salesforce) {
            snprintf(text, sizeof text, "%s{\"id\": \"00Q%015lu\", \"success\": true, \"errors\": [], \"created\": false}",
                     i ? ", " : "", number);
            say(body, text);
        }
    }
    say(body, hubspot ? "]}" : salesforce ? "]" : "{}");
    return "200 OK";
}


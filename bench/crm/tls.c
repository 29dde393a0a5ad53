/* The CRM over TLS, by OpenSSL. Each function does as its counterpart for a plain socket does, errno included.
   Without -DTLS there is none, and no need of OpenSSL. */
#include "crm.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#ifdef TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>

static SSL_CTX *context;

void tls_start(const char *certificate) {
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
    context = SSL_CTX_new(TLS_server_method());
    if (!context || SSL_CTX_use_certificate_chain_file(context, certificate) != 1
        || SSL_CTX_use_PrivateKey_file(context, certificate, SSL_FILETYPE_PEM) != 1) {
        ERR_print_errors_fp(stderr);
        exit(1);
    }
    /* What is left of a partial write may have moved by the next try: its buffer grows. */
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
}

void *tls_accept(int fd) {
    SSL *session = SSL_new(context);
    if (!session || !SSL_set_fd(session, fd)) abort();
    SSL_set_accept_state(session);
    return session;
}

static ssize_t result(SSL *session, int got) {
    if (got > 0) return got;
    int error = SSL_get_error(session, got);
    ERR_clear_error();
    if (error == SSL_ERROR_ZERO_RETURN) return 0;
    errno = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
    return -1;
}

ssize_t tls_receive(void *session, char *to, size_t size) { return result(session, SSL_read(session, to, (int)size)); }

ssize_t tls_send(void *session, const char *from, size_t size) {
    return result(session, SSL_write(session, from, size > 1 << 30 ? 1 << 30 : (int)size));
}

void tls_close(void *session) { SSL_free(session); }

#else

void tls_start(const char *certificate) {
    fprintf(stderr, "compiled without -DTLS, so there is no use for %s\n", certificate);
    exit(2);
}
void *tls_accept(int fd) { (void)fd; return NULL; }
ssize_t tls_receive(void *session, char *to, size_t size) { (void)session, (void)to, (void)size, errno = EPROTO; return -1; }
ssize_t tls_send(void *session, const char *from, size_t size) { (void)session, (void)from, (void)size, errno = EPROTO; return -1; }
void tls_close(void *session) { (void)session; }

#endif

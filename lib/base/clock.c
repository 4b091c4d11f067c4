/* SPDX-License-Identifier: Apache-2.0 */
/* Clocks. */
#include "base/clock.h"

#include <errno.h>
#include <time.h>

int64_t clock_mono_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

int64_t clock_mono_ms(void)
{
    return clock_mono_us() / 1000;
}

int64_t clock_real_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

void clock_rfc3339(int64_t real_ms, char out[CLOCK_RFC3339_SIZE])
{
    time_t seconds = (time_t)(real_ms / 1000);
    struct tm tm;
    gmtime_r(&seconds, &tm);
    size_t n = strftime(out, CLOCK_RFC3339_SIZE, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out + n, CLOCK_RFC3339_SIZE - n, ".%03dZ", (int)(real_ms % 1000));
}

/* `n` digits at p; -1 when they are none. */
static int digits(const char *p, int n)
{
    int value = 0;
    for (int i = 0; i < n; i++) {
        if (p[i] < '0' || p[i] > '9')
            return -1;
        value = 10 * value + p[i] - '0';
    }
    return value;
}

/* "Z" or "+01:00", in seconds east of Greenwich. */
static int parse_offset(const char *p, int *ret)
{
    if ((p[0] == 'Z' || p[0] == 'z') && !p[1]) {
        *ret = 0;
        return 0;
    }
    if ((p[0] != '+' && p[0] != '-') || strlen(p) != 6 || p[3] != ':')
        return -EINVAL;
    int hours = digits(p + 1, 2), minutes = digits(p + 4, 2);
    if (hours < 0 || hours > 23 || minutes < 0 || minutes > 59)
        return -EINVAL;
    *ret = (hours * 60 + minutes) * (p[0] == '-' ? -60 : 60);
    return 0;
}

int clock_parse_rfc3339(const char *text, int64_t *ret_real_ms)
{
    static const char form[] = "0000-00-00T00:00:00";
    int offset, ms = 0;
    for (size_t i = 0; form[i]; i++)
        if (form[i] == '0' ? digits(text + i, 1) < 0
                           : text[i] != form[i] && !(i == 10 && (text[i] == 't' || text[i] == ' ')))
            return -EINVAL;
    struct tm tm = {.tm_year = digits(text, 4) - 1900,
                    .tm_mon = digits(text + 5, 2) - 1,
                    .tm_mday = digits(text + 8, 2),
                    .tm_hour = digits(text + 11, 2),
                    .tm_min = digits(text + 14, 2),
                    .tm_sec = digits(text + 17, 2)};
    struct tm given = tm;
    time_t seconds = timegm(&tm);
    /* timegm turns February 30 into March 2; a leap second may become the next minute's first. */
    if (tm.tm_mon != given.tm_mon || (tm.tm_mday != given.tm_mday && given.tm_sec != 60))
        return -EINVAL;
    const char *p = text + sizeof(form) - 1;
    if (*p == '.') {
        size_t n = strspn(++p, "0123456789");
        if (n == 0)
            return -EINVAL;
        for (size_t i = 0; i < 3; i++)
            ms = 10 * ms + (i < n ? p[i] - '0' : 0);
        p += n;
    }
    if (given.tm_hour > 23 || given.tm_min > 59 || given.tm_sec > 60 ||
        parse_offset(p, &offset) < 0)
        return -EINVAL;
    *ret_real_ms = ((int64_t)seconds - offset) * 1000 + ms;
    return 0;
}

// Prints the frequency of this machine's TSC in kHz, measured over 100 ms.
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

static long long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC_RAW, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(void)
{
	long long start = now(), end;
	unsigned long long first = __rdtsc(), last;
	do {
		end = now();
		last = __rdtsc();
	} while (end - start < 100000000);
	printf("%llu\n", (last - first) * 1000000 / (unsigned long long)(end - start));
}

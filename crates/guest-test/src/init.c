/*
 * The first process of a test's guest. Tries the devices through Linux's drivers and prints one
 * line for each trial, "trial NAME: ok" or "trial NAME: FAILED: why". The host checks the rest.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096
#define MIB (1 << 20)

static unsigned char *page(void)
{
	void *memory = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return memory == MAP_FAILED ? NULL : memory;
}

/* NULL when all is well, and otherwise what was tried. errno says more. */
typedef const char *(*trial)(void);

/* The host wrote block number N full of the byte N. */
static const char *root_is_what_the_host_wrote(void)
{
	unsigned char *block = page();
	int disk = open("/dev/vda", O_RDONLY | O_DIRECT);
	if (disk < 0)
		return "open";
	for (int number = 0; number < 256; number++) {
		if (pread(disk, block, BLOCK, (off_t)number * BLOCK) != BLOCK)
			return "read";
		for (int at = 0; at < BLOCK; at++)
			if (block[at] != number)
				return "compare";
	}
	return close(disk) ? "close" : NULL;
}

static const char *root_cannot_be_written(void)
{
	int disk = open("/dev/vda", O_WRONLY | O_DIRECT);
	unsigned char *block = page();
	if (disk < 0)
		return NULL;
	return pwrite(disk, block, BLOCK, 0) < 0 ? NULL : "it was written";
}

static const char *root_has_its_name(void)
{
	char name[32] = "";
	int file = open("/sys/block/vda/serial", O_RDONLY);
	if (file < 0 || read(file, name, sizeof(name) - 1) < 0)
		return "read";
	return strncmp(name, "root-disk", 9) ? name : NULL;
}

static const char *scratch_keeps_what_is_written(void)
{
	unsigned char *block = page();
	int disk = open("/dev/vdb", O_RDWR | O_DIRECT);
	if (disk < 0)
		return "open";
	for (int number = 0; number < 256; number++) {
		memset(block, 255 - number, BLOCK);
		if (pwrite(disk, block, BLOCK, (off_t)number * BLOCK) != BLOCK)
			return "write";
	}
	if (fsync(disk))
		return "flush";
	for (int number = 0; number < 256; number++) {
		if (pread(disk, block, BLOCK, (off_t)number * BLOCK) != BLOCK)
			return "read";
		if (block[0] != 255 - number || block[BLOCK - 1] != 255 - number)
			return "compare";
	}
	return close(disk) ? "close" : NULL;
}

static const char *zeroes_after(unsigned long request, off_t from)
{
	unsigned long long range[2] = { (unsigned long long)from, 16 * BLOCK };
	unsigned char *block = page();
	int disk = open("/dev/vdb", O_RDWR | O_DIRECT);
	if (disk < 0)
		return "open";
	if (ioctl(disk, request, range))
		return "ask for it";
	if (pread(disk, block, BLOCK, from + 15 * BLOCK) != BLOCK)
		return "read";
	return block[0] || block[BLOCK - 1] ? "it is not zero" : NULL;
}

static const char *scratch_can_be_discarded(void)
{
	return zeroes_after(BLKDISCARD, 32 * BLOCK);
}

static const char *scratch_can_be_zeroed(void)
{
	return zeroes_after(BLKZEROOUT, 64 * BLOCK);
}

static const char *random_bytes_differ(void)
{
	unsigned char first[64], second[64];
	int device = open("/dev/hwrng", O_RDONLY);
	if (device < 0)
		return "open";
	if (read(device, first, sizeof(first)) != sizeof(first))
		return "read";
	if (read(device, second, sizeof(second)) != sizeof(second))
		return "read again";
	return memcmp(first, second, sizeof(first)) ? NULL : "they are the same";
}

static const char *time_passes(void)
{
	struct timespec before, after, wait = { 0, 50 * 1000 * 1000 };
	clock_gettime(CLOCK_MONOTONIC, &before);
	nanosleep(&wait, NULL);
	clock_gettime(CLOCK_MONOTONIC, &after);
	long long passed = (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec;
	return passed < 50 * 1000 * 1000 ? "too little" : NULL;
}

/* On one CPU after the other, with the disk, the clock and its timers. */
static const char *work_goes_on(void)
{
	struct timespec wait = { 0, 20 * 1000 * 1000 }, before, after;
	unsigned char *block = page();
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	int disk = open("/dev/vda", O_RDONLY | O_DIRECT);
	if (disk < 0)
		return "open";
	for (int turn = 1; turn <= 40; turn++) {
		cpu_set_t set;
		CPU_ZERO(&set);
		CPU_SET(turn % cpus, &set);
		if (sched_setaffinity(0, sizeof(set), &set))
			return "move to another CPU";
		clock_gettime(CLOCK_MONOTONIC, &before);
		nanosleep(&wait, NULL);
		clock_gettime(CLOCK_MONOTONIC, &after);
		if (after.tv_sec - before.tv_sec > 60)
			return "the clock jumped";
		if (pread(disk, block, BLOCK, (off_t)turn * BLOCK) != BLOCK)
			return "read";
		if (block[0] != turn || block[BLOCK - 1] != turn)
			return "compare";
		printf("turn %d\n", turn);
	}
	return NULL;
}

static long meminfo(const char *name)
{
	char line[128];
	long kib = -1;
	FILE *file = fopen("/proc/meminfo", "r");
	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)))
			kib = atol(line + strlen(name));
	if (file)
		fclose(file);
	return kib;
}

/* The host inflates the balloon by 32 MiB when it reads this trial's beginning. */
static const char *memory_goes_to_the_balloon(void)
{
	long before = meminfo("MemFree:");
	printf("ready for the balloon\n");
	for (int turn = 0; turn < 600; turn++) {
		if (before - meminfo("MemFree:") > 24 * 1024)
			return NULL;
		usleep(50 * 1000);
	}
	return "none went";
}

/* What is used and freed is reported to the host, which counts it. */
static const char *memory_is_used_and_freed(void)
{
	unsigned char *memory = mmap(NULL, 64 * MIB, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return "map";
	for (int at = 0; at < 64 * MIB; at += BLOCK)
		memory[at] = 1;
	printf("memory is in use\n");
	/* Until the host has looked. */
	sleep(1);
	if (munmap(memory, 64 * MIB))
		return "unmap";
	printf("memory is free\n");
	/* Reporting begins two seconds after pages become free (mm/page_reporting.c). */
	sleep(5);
	return NULL;
}

static void attempt(const char *name, trial trial)
{
	errno = 0;
	const char *failure = trial();
	if (failure)
		printf("trial %s: FAILED: %s: %s\n", name, failure, strerror(errno));
	else
		printf("trial %s: ok\n", name);
}

#define TRY(name) attempt(#name, name)

static void try_out(const char *what)
{
	if (!strcmp(what, "disks")) {
		TRY(root_is_what_the_host_wrote);
		TRY(root_cannot_be_written);
		TRY(root_has_its_name);
		TRY(scratch_keeps_what_is_written);
		TRY(scratch_can_be_discarded);
		TRY(scratch_can_be_zeroed);
	} else if (!strcmp(what, "rng")) {
		TRY(random_bytes_differ);
	} else if (!strcmp(what, "time")) {
		TRY(time_passes);
	} else if (!strcmp(what, "work")) {
		TRY(work_goes_on);
	} else if (!strcmp(what, "balloon")) {
		TRY(memory_goes_to_the_balloon);
	} else if (!strcmp(what, "reporting")) {
		TRY(memory_is_used_and_freed);
	} else {
		printf("trial %s: FAILED: there is none of this name\n", what);
	}
}

int main(void)
{
	/* The kernel hands on what it does not know as the environment of its first process. */
	char *trials = getenv("trials");

	setvbuf(stdout, NULL, _IOLBF, 0);
	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	printf("hello from user space, %ld CPUs\n", sysconf(_SC_NPROCESSORS_ONLN));
	for (char *what = strtok(trials, ","); what; what = strtok(NULL, ","))
		try_out(what);
	printf("goodbye\n");
	fflush(stdout);
	reboot(RB_AUTOBOOT);
	return 1;
}

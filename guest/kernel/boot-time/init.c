// PID 1 of the measured guest: says one byte on the agent port when it is there,
// and reboots when the host has answered. No libc, so that the time is the kernel's.
static long call(long n, long a, long b, long c, long d, long e)
{
	long r;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return r;
}

enum { READ = 0, WRITE = 1, OPEN = 2, NANOSLEEP = 35, MOUNT = 165, REBOOT = 169 };

__attribute__((used)) static void run(void)
{
	long half_ms[2] = { 0, 500000 };
	long port;
	char answer;

	call(MOUNT, (long)"dev", (long)"/dev", (long)"devtmpfs", 0, 0);
	while ((port = call(OPEN, (long)"/dev/vport0p1", 2, 0, 0, 0)) < 0)
		call(NANOSLEEP, (long)half_ms, 0, 0, 0, 0);
	call(WRITE, port, (long)"R", 1, 0, 0);
	call(READ, port, (long)&answer, 1, 0, 0);
	call(REBOOT, 0xfee1dead, 672274793, 0x1234567, 0, 0);
}

__asm__(".globl _start\n_start: andq $-16, %rsp\n call run\n ud2\n");

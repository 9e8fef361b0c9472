//! How a payload lives and ends, and what can be seen of it from outside.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use jail::cgroup::{self, Parent};
use jail::filter::{Filter, Rule};
use launch::Owner;
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::kernel::call;
use crate::target::HANDED;
use crate::{Captive, Failed, User, Way, capture, capture_in, on_tokio, payload};

/// Makes this program the owner of a payload, to be killed.
pub(crate) const OWNER: &str = "__owner";

/// An error number that no call of the kernel's returns by itself.
const REFUSED: u16 = 4000;

pub(crate) fn trials(user: User) -> Vec<Trial> {
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(
                format!("{}::{}", user.name(), stringify!($name)),
                move || on_tokio(async move || $name(user).await),
            )),*]
        };
    }
    trials![
        the_jail_is_whole,
        it_can_do_a_monitor_s_work,
        its_owner_can_ask_it,
        every_other_call_is_refused,
        calls_of_the_32_bit_interface_kill_it,
        only_what_was_handed_over_is_open,
        its_keeper_has_nothing_open,
        it_and_its_keeper_have_no_capabilities,
        it_and_its_keeper_are_filtered,
        its_namespaces_are_its_own,
        its_memory_is_no_one_s_to_read,
        its_status_is_the_keeper_s,
        it_leaves_no_core_when_it_crashes,
        killing_it_leaves_nothing,
        it_does_not_outlive_its_keeper,
        it_does_not_outlive_its_owner,
        its_group_bounds_it,
    ]
}

// The payload's side.

pub(crate) fn act(name: &str, owner: &mut Owner) -> Result<u8, Failed> {
    match name {
        "stay" => loop {
            std::thread::sleep(Duration::from_secs(1000));
        },
        "exit" => return Ok(7),
        "crash" => std::process::abort(),
        "work" => owner.report(&work()?)?,
        "answer" => {
            while let Some(request) = owner.request::<Value>()? {
                request.ticket.answer(owner, &json!({"to": request.body}))?;
            }
        }
        "try-every-call" => owner.report(&calls_that_pass())?,
        "list-descriptors" => owner.report(&open_descriptors())?,
        #[cfg(target_arch = "x86_64")]
        "call-as-i386" => {
            // 20 is getpid there, and writev here.
            let pid = crate::kernel::call_of_i386(20);
            owner.report(&pid)?;
        }
        "eat-memory" => {
            let mut eaten: Vec<Vec<u8>> = Vec::new();
            for megabyte in 0..256_u32 {
                eaten.push(vec![1; 1 << 20]);
                owner.report(&megabyte)?;
            }
        }
        other => return Err(format!("no part {other}").into()),
    }
    Ok(0)
}

/// What a monitor does all day, but for KVM.
fn work() -> Result<Vec<String>, Failed> {
    let mut done = Vec::new();
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..3_u32)
        .map(|number| {
            let sender = sender.clone();
            std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                // One that does less gets less.
                let rules = [
                    libc::SYS_futex,
                    libc::SYS_write,
                    libc::SYS_exit,
                    libc::SYS_madvise,
                    libc::SYS_munmap,
                    libc::SYS_rt_sigprocmask,
                    libc::SYS_sigaltstack,
                    libc::SYS_mmap,
                    libc::SYS_mprotect,
                    libc::SYS_brk,
                    libc::SYS_rseq,
                ]
                .map(Rule::call);
                let narrowed = Filter::allow(&rules).and_then(|filter| filter.install());
                let _ = sender.send(narrowed.is_ok());
            })
        })
        .collect::<Result<_, _>>()?;
    drop(sender);
    assert!(receiver.iter().all(|narrowed| narrowed));
    threads.into_iter().for_each(|thread| thread.join().expect("it ended well"));
    done.push("threads, with filters of their own".into());

    let caught = std::panic::catch_unwind(|| panic!("on purpose"));
    assert!(caught.is_err());
    done.push("a panic".into());

    let memory = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&memory, payload::SIZE.guest_memory)?;
    rustix::io::pwrite(&memory, b"guest", 0)?;
    let mut bytes = [0; 5];
    rustix::io::pread(&memory, &mut bytes, 0)?;
    assert_eq!(&bytes, b"guest");
    done.push("the guest's memory".into());

    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    (&theirs).write_all(b"x")?;
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK)?;
    rustix::io::write(&event, &1_u64.to_ne_bytes())?;
    let mut polled = [
        rustix::event::PollFd::new(&ours, rustix::event::PollFlags::IN),
        rustix::event::PollFd::new(&event, rustix::event::PollFlags::IN),
    ];
    assert_eq!(rustix::event::poll(&mut polled, None)?, 2);
    done.push("sockets, events and waiting".into());

    std::thread::sleep(Duration::from_millis(1));
    assert!(std::thread::available_parallelism().is_ok());
    // Its keys are random.
    let mut map = std::collections::HashMap::new();
    map.insert(Instant::now(), vec![0_u8; 8 << 20]);
    assert_eq!(map.len(), 1);
    done.push("time, randomness and large allocations".into());
    Ok(done)
}

/// Calls each number but those that the filter is asked for, and lists what is not refused.
fn calls_that_pass() -> Vec<i64> {
    (0..1024)
        .filter(|number| !ALLOWED.contains(number) && !OF_PROBES.contains(number))
        .filter(|number| {
            let arguments = [-1; 6];
            let refused = Some(i32::from(REFUSED));
            call(*number, &arguments).err().and_then(|error| error.raw_os_error()) != refused
        })
        .collect()
}

/// uretprobe and uprobe, which the kernel has its own trampolines call, past every filter, and
/// answers with SIGILL to anybody else.
const OF_PROBES: [libc::c_long; 2] = [335, 336];

/// What the policy allows in some form, and what fails with an error of its own. Changing the
/// policy changes this list as well, so that it is done on purpose.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_memfd_create,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_clone,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_prlimit64,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    libc::SYS_getsockopt,
    // These fail.
    libc::SYS_clone3,
    libc::SYS_openat,
    libc::SYS_open,
    libc::SYS_readlinkat,
    libc::SYS_readlink,
];

fn open_descriptors() -> Vec<i32> {
    let is_open = |number: &i32| call(libc::SYS_fcntl, &[(*number).into(), libc::F_GETFD.into()]);
    (0..4096).filter(|number| is_open(number).is_ok()).collect()
}

// The owner's side.

async fn told(captive: &mut Captive) -> Result<Value, Failed> {
    match captive.process.report().await? {
        Some(told) => Ok(told),
        None => Err(format!("it ended: {}", captive.process.wait().await?).into()),
    }
}

/// The keeper and the inner process, where the host gives them a namespace.
fn pair(captive: &Captive) -> Result<Option<(u32, u32)>, Failed> {
    let Some(inner) = captive.jail.inner else {
        eprintln!("not run: a keeper, for this host lacks {}", captive.jail.missing.join("; "));
        return Ok(None);
    };
    let status = status(inner)?;
    let keeper = status.lines().find_map(|line| line.strip_prefix("PPid:")).ok_or("no parent")?;
    Ok(Some((keeper.trim().parse()?, inner)))
}

fn status(pid: u32) -> io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/status"))
}

fn is_running(pid: u32) -> bool {
    status(pid).is_ok_and(|status| !status.contains("State:\tZ"))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<(), Failed> {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > Duration::from_secs(10) {
            return Err(format!("after ten seconds still not: {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

async fn until_gone(pid: u32) -> Result<(), Failed> {
    until(&format!("process {pid} is gone"), || !is_running(pid)).await
}

fn kill(pid: u32) -> Result<(), Failed> {
    let pid = Pid::from_raw(pid.cast_signed()).ok_or("no pid")?;
    Ok(kill_process(pid, Signal::KILL)?)
}

async fn the_jail_is_whole(user: User) -> Result<(), Failed> {
    let captive = capture(user, "stay", Way::Jailed).await?;
    for missing in &captive.jail.missing {
        eprintln!("not run: {} with {missing}", user.name());
    }
    let layers = captive.jail.layers.join("\n");
    for layer in ["descriptor", "bounded", "capabilities", "privileges", "core", "seccomp"] {
        assert!(layers.contains(layer), "no {layer} in:\n{layers}");
    }
    Ok(())
}

async fn it_can_do_a_monitor_s_work(user: User) -> Result<(), Failed> {
    let mut captive = capture(user, "work", Way::Jailed).await?;
    let done = told(&mut captive).await?;
    assert_eq!(done.as_array().map(Vec::len), Some(5), "{done}");
    assert!(captive.process.wait().await?.status.success());
    Ok(())
}

async fn its_owner_can_ask_it(user: User) -> Result<(), Failed> {
    let mut captive = capture(user, "answer", Way::Jailed).await?;
    for question in 0..10 {
        let answer: Value = captive.process.control().ask(&question, &[]).await?;
        assert_eq!(answer, json!({"to": question}));
    }
    Ok(())
}

async fn every_other_call_is_refused(user: User) -> Result<(), Failed> {
    let mut captive = capture(user, "try-every-call", Way::Answering(REFUSED)).await?;
    assert_eq!(told(&mut captive).await?, json!([]));
    Ok(())
}

async fn calls_of_the_32_bit_interface_kill_it(user: User) -> Result<(), Failed> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(());
    }
    let mut captive = capture(user, "call-as-i386", Way::Jailed).await?;
    let end = captive.process.wait().await?;
    assert_eq!(end.status.signal(), Some(libc::SIGSYS), "{end}");
    Ok(())
}

async fn only_what_was_handed_over_is_open(user: User) -> Result<(), Failed> {
    // Not marked to be closed, as what a careless parent leaves open.
    let (stray, _end) = rustix::pipe::pipe()?;
    let mut captive = capture(user, "list-descriptors", Way::Jailed).await?;
    drop(stray);

    let open = told(&mut captive).await?;

    let streams = 3;
    let owner = 2;
    assert_eq!(open.as_array().map(Vec::len), Some(streams + owner + HANDED), "{open}");
    Ok(())
}

async fn its_keeper_has_nothing_open(user: User) -> Result<(), Failed> {
    let captive = capture(user, "stay", Way::Jailed).await?;
    let Some((keeper, _)) = pair(&captive)? else { return Ok(()) };
    let Ok(open) = fs::read_dir(format!("/proc/{keeper}/fd")) else {
        eprintln!("not run: looking at a keeper's descriptors, which only root may");
        return Ok(());
    };
    // Its end of the pipe.
    assert_eq!(open.count(), 1);
    Ok(())
}

async fn it_and_its_keeper_have_no_capabilities(user: User) -> Result<(), Failed> {
    let captive = capture(user, "stay", Way::Jailed).await?;
    let Some((keeper, inner)) = pair(&captive)? else { return Ok(()) };
    for pid in [keeper, inner] {
        let status = status(pid)?;
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
        }
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    }
    Ok(())
}

async fn it_and_its_keeper_are_filtered(user: User) -> Result<(), Failed> {
    let captive = capture(user, "stay", Way::Jailed).await?;
    let Some((keeper, inner)) = pair(&captive)? else { return Ok(()) };
    let is_filtered = |pid| status(pid).is_ok_and(|status| status.contains("Seccomp:\t2"));
    assert!(is_filtered(inner));
    until("the keeper is filtered", || is_filtered(keeper)).await
}

async fn its_namespaces_are_its_own(user: User) -> Result<(), Failed> {
    let captive = capture(user, "stay", Way::Jailed).await?;
    let Some((_, inner)) = pair(&captive)? else { return Ok(()) };
    let lacking = captive.jail.missing.join("\n");
    let kinds = [
        ("user", "user"),
        ("mnt", "mount"),
        ("pid", "process"),
        ("net", "network"),
        ("ipc", "IPC"),
        ("uts", "host name"),
        ("cgroup", "control group"),
    ];
    let namespaces = |pid: &str| -> io::Result<BTreeSet<_>> {
        let made = kinds.iter().filter(|(_, name)| !lacking.contains(&format!("{name} namespace")));
        made.map(|(kind, _)| kind)
            .map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")))
            .collect()
    };
    let Ok(its) = namespaces(&inner.to_string()) else {
        eprintln!("not run: looking at a monitor's namespaces, which only root may");
        return Ok(());
    };
    let shared: Vec<_> = its.intersection(&namespaces("self")?).cloned().collect();
    assert!(shared.is_empty(), "{shared:?}");
    Ok(())
}

async fn its_memory_is_no_one_s_to_read(user: User) -> Result<(), Failed> {
    use std::os::unix::fs::MetadataExt as _;
    let captive = capture(user, "stay", Way::Jailed).await?;
    let Some((keeper, inner)) = pair(&captive)? else { return Ok(()) };
    for pid in [keeper, inner] {
        // The kernel gives the files of a process that cannot be dumped to root (proc(5)).
        assert_eq!(fs::metadata(format!("/proc/{pid}/mem"))?.uid(), 0);
        let own = captive.jail.layers.iter().any(|layer| layer.starts_with("user id"));
        assert_eq!(own, user == User::Root && !status(pid)?.contains("Uid:\t0"));
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"));
        let core = "Max core file size        1                    1";
        assert!(limits.is_ok_and(|limits| limits.contains(core)));
    }
    Ok(())
}

async fn its_status_is_the_keeper_s(user: User) -> Result<(), Failed> {
    let mut captive = capture(user, "exit", Way::Jailed).await?;
    assert_eq!(captive.process.wait().await?.status.code(), Some(7));

    let mut captive = capture(user, "stay", Way::Jailed).await?;
    let Some((_, inner)) = pair(&captive)? else { return Ok(()) };
    kill(inner)?;
    assert_eq!(captive.process.wait().await?.status.signal(), Some(libc::SIGKILL));
    Ok(())
}

async fn it_leaves_no_core_when_it_crashes(user: User) -> Result<(), Failed> {
    let mut captive = capture(user, "crash", Way::Jailed).await?;
    let end = captive.process.wait().await?;
    assert!(end.status.signal().is_some() && !end.status.core_dumped(), "{end}");
    Ok(())
}

async fn killing_it_leaves_nothing(user: User) -> Result<(), Failed> {
    let mut captive = capture(user, "stay", Way::Jailed).await?;
    let Some((keeper, inner)) = pair(&captive)? else { return Ok(()) };
    assert_eq!(captive.process.pid(), Some(inner));

    captive.process.kill().await?;

    for pid in [keeper, inner] {
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
    Ok(())
}

async fn it_does_not_outlive_its_keeper(user: User) -> Result<(), Failed> {
    let captive = capture(user, "stay", Way::Jailed).await?;
    let Some((keeper, inner)) = pair(&captive)? else { return Ok(()) };
    kill(keeper)?;
    until_gone(inner).await
}

async fn it_does_not_outlive_its_owner(user: User) -> Result<(), Failed> {
    let mut owner =
        Command::new("/proc/self/exe").args([OWNER, user.name()]).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    io::BufReader::new(owner.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
    let (keeper, inner): (u32, u32) = serde_json::from_str(&line)?;
    assert!(is_running(keeper) && is_running(inner));

    owner.kill()?;
    owner.wait()?;

    until_gone(keeper).await?;
    until_gone(inner).await
}

/// The owner that is killed.
pub(crate) fn own(user: &str) -> ExitCode {
    let Some(user) = User::all().iter().copied().find(|known| known.name() == user) else {
        return ExitCode::FAILURE;
    };
    let owned = on_tokio(async || {
        let captive = capture(user, "stay", Way::Jailed).await?;
        let processes = pair(&captive)?.or_else(|| captive.process.pid().map(|pid| (pid, pid)));
        println!("{}", serde_json::to_string(&processes)?);
        std::future::pending::<()>().await;
        Ok(())
    });
    owned.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

async fn its_group_bounds_it(user: User) -> Result<(), Failed> {
    let parent = match Parent::find() {
        Ok(parent) => parent,
        Err(missing) => {
            eprintln!("not run: {} in a control group: {missing}", user.name());
            return Ok(());
        }
    };
    let bounds = cgroup::Bounds { memory: 32 << 20, tasks: 8, processor_thousandths: 500 };
    let group = parent.group(&format!("takeover-{}", user.name()), &bounds)?;
    let read = |file: &str| fs::read_to_string(group.path().join(file));
    assert_eq!(read("cpu.max")?, "50000 100000\n");
    assert_eq!(read("pids.max")?, "8\n");

    let mut captive = capture_in(user, "eat-memory", Way::Jailed, Some(group.door()?)).await?;
    let end = captive.process.wait().await?;

    // With one of them, the kernel kills the keeper as well.
    assert_eq!(end.status.signal(), Some(libc::SIGKILL), "{end}");
    assert!(read("memory.events")?.contains("oom_group_kill 1"), "{}", read("memory.events")?);
    let path = group.path().to_owned();
    drop(group);
    assert!(!path.exists());
    Ok(())
}

//! The way out, from inside: what tasks send reaches the host as they meant it, and nothing else
//! leads anywhere.

use supervisor::{Sandbox, SandboxSpec};

use crate::internet::{
    BROKEN, DEAF, ECHO, HASTY, Internet, REFUSED, SECURE, SINK, SOURCE, SOURCE_BYTES, UNKNOWN,
    WHERE, address_of,
};
use crate::support::{
    block_on, engines_with_process, run, sh, shell, supervisor, with_network, with_sandbox,
};

/// Runs Python as a task; its output, where it succeeded.
async fn python(guest: &Sandbox, code: &str) -> String {
    let prelude = "import errno, os, select, socket, ssl, struct, sys, threading, time\n\
        def tcp(address, port):\n    return socket.create_connection((address, port), 20)\n\
        def everything(s):\n    all = b''\n    while True:\n        part = s.recv(65536)\n        \
        if not part: return all\n        all += part\n";
    sh(guest, &format!("python3 - <<'EOF'\n{prelude}{code}\nEOF")).await.ok()
}

#[test]
fn a_connection_to_any_address_arrives_as_it_was_meant() {
    with_network(async |guest, _| {
        let code = format!(
            "for address in ['192.0.2.7', '169.254.169.254', '10.1.2.3', '198.19.7.7', '8.8.8.8',\n\
             \x20               '2001:db8::7', '2606:4700::1111', 'fd00::9', '::ffff:192.0.2.8']:\n\
             \x20   s = tcp(address, {WHERE}); s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n\
             \x20   print(everything(s).decode().splitlines()[-1])"
        );
        let expected = "192.0.2.7 80\n169.254.169.254 80\n10.1.2.3 80\n198.19.7.7 80\n8.8.8.8 80\n\
            2001:db8::7 80\n2606:4700::1111 80\nfd00::9 80\n192.0.2.8 80\n";
        assert_eq!(python(guest, &code).await, expected);
    });
}

#[test]
fn a_megabyte_goes_each_way_and_arrives_whole() {
    with_network(async |guest, _| {
        let code = format!(
            "data = os.urandom(1 << 20)\n\
             s = tcp('192.0.2.1', {ECHO})\n\
             def send():\n    s.sendall(data); s.shutdown(socket.SHUT_WR)\n\
             t = threading.Thread(target=send); t.start()\n\
             print(everything(s) == data)"
        );
        assert_eq!(python(guest, &code).await, "True\n");
    });
}

#[test]
fn a_task_that_has_sent_all_still_gets_its_answer() {
    with_network(async |guest, _| {
        let code = format!(
            "s = tcp('192.0.2.1', {SINK})\n\
             s.sendall(b'\\1' * 300000); s.shutdown(socket.SHUT_WR)\n\
             print(everything(s).decode())"
        );
        assert_eq!(python(guest, &code).await, "300000 300000\n");
    });
}

#[test]
fn all_that_a_server_sent_arrives_though_it_never_read() {
    with_network(async |guest, _| {
        let code = format!(
            "s = tcp('192.0.2.1', {HASTY}); s.sendall(b'ignored')\n\
             time.sleep(0.2)\n\
             print(len(everything(s)))\n\
             s = tcp('192.0.2.1', {SOURCE}); n = 0\n\
             while True:\n    part = s.recv(1 << 20)\n    if not part: break\n    n += len(part)\n\
             print(n)"
        );
        assert_eq!(python(guest, &code).await, format!("100000\n{SOURCE_BYTES}\n"));
    });
}

#[test]
fn what_the_host_refuses_or_breaks_is_a_reset() {
    with_network(async |guest, _| {
        let code = format!(
            "for port in [{REFUSED}, {BROKEN}]:\n\
             \x20   try:\n        s = tcp('192.0.2.1', port); s.sendall(b'xx'); everything(s)\n\
             \x20       print('ended')\n\
             \x20   except OSError as e: print(errno.errorcode[e.errno])"
        );
        assert_eq!(python(guest, &code).await, "ECONNRESET\nECONNRESET\n");
    });
}

#[test]
fn a_slow_reader_stops_the_task_that_sends() {
    with_network(async |guest, _| {
        let code = format!(
            "s = tcp('192.0.2.1', {DEAF}); s.setblocking(False); n = 0\n\
             s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)\n\
             quiet = 0\n\
             while quiet < 5:\n\
             \x20   try: n += s.send(b'x' * 65536); quiet = 0\n\
             \x20   except BlockingIOError: quiet += 1; time.sleep(0.1)\n\
             print(n)"
        );
        let sent: usize = python(guest, &code).await.trim().parse().unwrap();
        assert!((256 << 10..8 << 20).contains(&sent), "{sent}");
        // And only that one.
        let code = format!("s = tcp('192.0.2.1', {ECHO}); s.sendall(b'hi'); print(s.recv(2))");
        assert_eq!(python(guest, &code).await, "b'hi'\n");
    });
}

#[test]
fn names_are_the_host_s_to_answer() {
    with_network(async |guest, _| {
        let code = format!(
            "print(socket.getaddrinfo('example.com', 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])\n\
             print(sorted({{a[4][0] for a in socket.getaddrinfo('both.test', 80)}}))\n\
             try: socket.getaddrinfo('{UNKNOWN}', 80)\n\
             except socket.gaierror: print('unknown')"
        );
        let (one, both) = (address_of("example.com"), address_of("both.test"));
        assert_eq!(python(guest, &code).await, format!("{one}\n['{both}']\nunknown\n"));
        let fetched = sh(guest, "curl -sS http://where.test/").await.ok();
        assert_eq!(fetched, format!("{} 80\n", address_of("where.test")));
    });
}

#[test]
fn two_hundred_questions_at_once_are_all_answered() {
    with_network(async |guest, _| {
        let code = "answers = {}; threading.stack_size(256 << 10)\n\
            def ask(n):\n    answers[n] = socket.gethostbyname(f'host{n}.test')\n\
            ts = [threading.Thread(target=ask, args=(n,)) for n in range(200)]\n\
            [t.start() for t in ts]; [t.join() for t in ts]\n\
            print(' '.join(answers[n] for n in range(200)))";
        let answers = python(guest, code).await;
        let expected: Vec<_> =
            (0..200).map(|n| address_of(&format!("host{n}.test")).to_string()).collect();
        assert_eq!(answers.trim(), expected.join(" "));
    });
}

#[test]
fn questions_to_any_server_by_either_protocol_are_the_host_s() {
    with_network(async |guest, _| {
        let code = "q = b'\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\4name\\4test\\0\\0\\1\\0\\1'\n\
            for family, server in [(socket.AF_INET, '9.9.9.9'), (socket.AF_INET6, '2620:fe::fe')]:\n\
            \x20   s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(20)\n\
            \x20   s.sendto(q, (server, 53)); data, peer = s.recvfrom(512)\n\
            \x20   print(data[:2].hex(), socket.inet_ntoa(data[-4:]), peer[0])\n\
            s = tcp('9.9.9.9', 53); s.sendall(b'echo'); print(s.recv(4))";
        let address = address_of("name.test");
        let expected = format!("1234 {address} 9.9.9.9\n1234 {address} 2620:fe::fe\nb'echo'\n");
        assert_eq!(python(guest, code).await, expected);
    });
}

#[test]
fn other_datagrams_are_turned_away_at_once() {
    with_network(async |guest, _| {
        let code = "for address, port in [('192.0.2.1', 443), ('2001:db8::1', 443), ('192.0.2.1', 123)]:\n\
            \x20   family = socket.AF_INET6 if ':' in address else socket.AF_INET\n\
            \x20   s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(20)\n\
            \x20   s.connect((address, port)); begun = time.time()\n\
            \x20   try: s.send(b'quic'); s.recv(10)\n\
            \x20   except OSError as e: print(errno.errorcode[e.errno], time.time() - begun < 2)";
        assert_eq!(python(guest, code).await, "ECONNREFUSED True\n".repeat(3));
    });
}

#[test]
fn nothing_but_tcp_and_names_gets_out() {
    with_network(async |guest, _| {
        // An echo request by a socket for it, where the kernel gives a task one at all.
        let code = "try:\n\
            \x20   s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)\n\
            \x20   s.settimeout(1); s.sendto(b'\\x08\\0\\0\\0\\0\\0\\0\\0', ('192.0.2.1', 0)); s.recv(100)\n\
            \x20   print('answered')\n\
            except OSError: print('nothing')";
        assert_eq!(python(guest, code).await, "nothing\n");
    });
}

#[test]
fn servers_of_tasks_are_reached_as_before() {
    with_network(async |guest, _| {
        let code = "def serve(family, address, port):\n\
            \x20   l = socket.socket(family); l.bind((address, port)); l.listen(5)\n\
            \x20   def run():\n        c, _ = l.accept(); c.sendall(b'own'); c.close()\n\
            \x20   threading.Thread(target=run, daemon=True).start()\n\
            for family, bound, asked, port in [(2, '127.0.0.1', '127.0.0.1', 80), (10, '::1', '::1', 81),\n\
            \x20       (2, '0.0.0.0', '127.0.0.5', 82), (2, '0.0.0.0', '198.18.0.1', 443)]:\n\
            \x20   serve(family, bound, port); print(everything(tcp(asked, port)))\n\
            u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', 53))\n\
            v = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); v.sendto(b'hi', ('127.0.0.1', 53))\n\
            print(u.recv(2))\n\
            try: tcp('127.0.0.1', 9999)\n\
            except ConnectionRefusedError: print('refused')";
        assert_eq!(python(guest, code).await, format!("{}b'hi'\nrefused\n", "b'own'\n".repeat(4)));
    });
}

#[test]
fn the_agent_s_own_sockets_are_nobody_s_to_reach() {
    with_network(async |guest, _| {
        let code = "for address in ['127.0.0.1', '::1', '198.18.0.1', 'fd5a:f0::1', '127.0.0.9']:\n\
            \x20   try: tcp(address, 1); print('connected')\n\
            \x20   except ConnectionRefusedError: print('refused')\n\
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20)\n\
            s.connect(('127.0.0.1', 1))\n\
            try: s.send(b'0123456789abcdef'); s.recv(10)\n\
            except OSError as e: print(errno.errorcode[e.errno])\n\
            for kind in [socket.SOCK_STREAM, socket.SOCK_DGRAM]:\n\
            \x20   s = socket.socket(socket.AF_INET, kind)\n\
            \x20   s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
            \x20   s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n\
            \x20   try: s.bind(('127.0.0.1', 1)); print('taken')\n\
            \x20   except OSError as e: print(errno.errorcode[e.errno])";
        let expected = format!("{}ECONNREFUSED\nEADDRINUSE\nEADDRINUSE\n", "refused\n".repeat(5));
        assert_eq!(python(guest, code).await, expected);
    });
}

#[test]
fn tasks_change_nothing_of_it() {
    with_network(async |guest, _| {
        for user in ["agent", "root"] {
            let mut task = shell(
                "python3 - <<'EOF'\n\
                 import fcntl, socket, struct\n\
                 def refused(what, act):\n\
                 \x20   try: act(); print(what, 'done')\n\
                 \x20   except OSError: pass\n\
                 s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                 flags = struct.pack('16sH14x', b'sandforge0', 0)\n\
                 refused('down', lambda: fcntl.ioctl(s, 0x8914, flags))\n\
                 refused('netfilter', lambda: socket.socket(16, socket.SOCK_RAW, 12))\n\
                 refused('vsock', lambda: socket.socket(40, socket.SOCK_STREAM))\n\
                 refused('packet', lambda: socket.socket(17, socket.SOCK_RAW))\n\
                 refused('transparent', lambda: s.setsockopt(0, 19, 1))\n\
                 refused('mark', lambda: s.setsockopt(1, 36, 1))\n\
                 # A route deleted by netlink: the kernel's answer is an error.\n\
                 n = socket.socket(16, socket.SOCK_RAW, 0)\n\
                 n.send(struct.pack('=IHHII8BI', 28, 25, 5, 1, 0, 2, 0, 0, 0, 254, 3, 253, 1, 0))\n\
                 answer = n.recv(4096)\n\
                 if struct.unpack('=i', answer[16:20])[0] == 0: print('route done')\n\
                 EOF\n\
                 for f in /run/sandforge/ca.pem /run/sandforge/authority.pem; do\n\
                   (echo x >> $f) 2>/dev/null && echo $f written; rm -f $f 2>/dev/null && echo $f gone\n\
                 done; mv /run/sandforge /run/other 2>/dev/null && echo moved; true",
            );
            task.user = Some(user.into());
            assert_eq!(run(guest, task).await.ok(), "", "as {user}");
        }
        let code = format!("s = tcp('192.0.2.1', {ECHO}); s.sendall(b'hi'); print(s.recv(2))");
        assert_eq!(python(guest, &code).await, "b'hi'\n");
    });
}

#[test]
fn the_certificate_is_trusted_by_what_is_in_the_root() {
    with_network(async |guest, _| {
        let python_line = format!(
            "python3 -c \"import ssl, socket; c = ssl.create_default_context(); \
             s = c.wrap_socket(socket.create_connection(('secure.test', {SECURE}), 20), \
             server_hostname='secure.test'); s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); \
             print(s.recv(999).decode().split()[-1])\""
        );
        let openssl = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | openssl s_client -quiet \
            -verify_return_error -connect secure.test:443 -servername secure.test 2>/dev/null | tail -n 1";
        let git = "git ls-remote https://secure.test/x 2>&1 | grep -c certificate || true";
        for (program, line, expected) in [
            ("curl", "curl -sS https://secure.test/", "secure\n"),
            // Without our variables, by the system's own files.
            ("curl", "env -i PATH=$PATH curl -sS https://secure.test/", "secure\n"),
            ("openssl", openssl, "secure\n"),
            ("openssl", &format!("unset SSL_CERT_FILE; {openssl}"), "secure\n"),
            ("python3", &python_line, "secure\n"),
            ("python3", &format!("unset SSL_CERT_FILE; {python_line}"), "secure\n"),
            ("git", git, "0\n"),
        ] {
            let line = format!("command -v {program} >/dev/null || exit 99; {line}");
            let ran = sh(guest, &line).await;
            if ran.code() != Some(99) {
                assert_eq!(ran.ok(), expected, "{line}");
            }
        }
        // Those that were trusted before still are.
        let count = "grep -c BEGIN.CERT /run/sandforge/ca.pem";
        assert!(sh(guest, count).await.ok().trim().parse::<u32>().unwrap() > 50);
    });
}

#[test]
fn what_the_host_gives_is_a_default_of_every_task() {
    with_network(async |guest, _| {
        let line = "echo $EXAMPLE_API_KEY $SSL_CERT_FILE $NODE_EXTRA_CA_CERTS $HOME";
        let expected =
            "placeholder /run/sandforge/ca.pem /run/sandforge/authority.pem /home/agent\n";
        assert_eq!(sh(guest, line).await.ok(), expected);
        let mut own = shell("echo $EXAMPLE_API_KEY");
        own.env = crate::support::env(&[("EXAMPLE_API_KEY", "mine")]);
        assert_eq!(run(guest, own).await.ok(), "mine\n");
    });
}

#[test]
fn without_a_network_there_is_nothing_to_reach_and_that_at_once() {
    with_sandbox(async |guest| {
        let code = "begun = time.time()\n\
            for family, address in [(2, '192.0.2.1'), (10, '2001:db8::1')]:\n\
            \x20   try: socket.socket(family).connect((address, 80))\n\
            \x20   except OSError as e: print(errno.errorcode[e.errno])\n\
            try: socket.getaddrinfo('example.com', 80)\n\
            except socket.gaierror: print('unknown')\n\
            print(time.time() - begun < 5)";
        assert_eq!(python(guest, code).await, "ENETUNREACH\nENETUNREACH\nunknown\nTrue\n");
        assert_eq!(sh(guest, "ls /run/sandforge; echo $SSL_CERT_FILE").await.stdout, "\n");
    });
}

#[test]
fn a_network_after_the_first_task_is_refused() {
    with_sandbox(async |guest| {
        assert_eq!(sh(guest, "echo first").await.ok(), "first\n");
        let internet = Internet::new();
        let refused = guest.guest().ask(&internet.network().operation).await;
        let refusal = crate::support::refusal(refused);
        assert!(refusal.message.contains("before its first task"), "{refusal}");
    });
}

#[test]
fn more_connections_than_a_sandbox_may_have_wait_their_turn() {
    with_network(async |guest, _| {
        let code = format!(
            "ss = [tcp('192.0.2.1', {ECHO}) for _ in range(300)]\n\
             for s in ss: s.sendall(b'x')\n\
             n = 0\n\
             for s in ss:\n    s.settimeout(20); n += len(s.recv(1)); s.close()\n\
             print(n)"
        );
        assert_eq!(python(guest, &code).await, "300\n");
    });
}

/// A host that starts anew has another authority, and the sandbox goes on.
#[test]
fn a_host_that_takes_a_sandbox_up_is_trusted_in_the_place_of_the_one_before() {
    let runtime = tempfile::tempdir().unwrap();
    for engine in engines_with_process() {
        block_on(async {
            let supervisor = supervisor().with_runtime_directory(runtime.path().join("run"));
            let network = Some(Internet::new().network());
            let spec = SandboxSpec { name: Some("kept".into()), keep: true, network, ..engine };
            let first = supervisor.create(spec, &mut ()).await.unwrap();
            let curl = "curl -sS https://secure.test/ && env -i PATH=$PATH curl -sS \
                https://secure.test/ && grep -c 'Added by' /run/sandforge/ca.pem";
            assert_eq!(sh(&first, curl).await.ok(), "secure\nsecure\n1\n");
            first.leave();

            let network = Some(Internet::new().network());
            let second = supervisor.attach_with("kept", network).await.unwrap();
            assert_eq!(sh(&second, curl).await.ok(), "secure\nsecure\n1\n");
            drop(second);

            // Nobody takes what its tasks open.
            let third = supervisor.attach("kept").await.unwrap();
            assert_ne!(sh(&third, "curl -sS -m 20 http://192.0.2.1/").await.code(), Some(0));
            drop(third);
            supervisor.remove("kept").await.unwrap();
        });
    }
}

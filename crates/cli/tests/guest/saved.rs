//! Machines that go on from where another stood still.

use std::time::Duration;

use engine::{Attachment, BootSpec, Machine, Saved, Snapshot, System};
use link::{Guest, SigningKey};
use supervisor::wire::envelope::key_to_hex;

use crate::support::{block_on, engines, run_in, shell, supervisor};
use crate::trust::system;

const SANDBOX: &str = "sb-saved";

/// A machine called `name` whose agent is that of [`SANDBOX`].
async fn start(engine: &str, name: &str, key: &SigningKey, system: System) -> Box<dyn Machine> {
    let spec = BootSpec {
        sandbox: name.into(),
        cpus: 2,
        memory_mb: 256,
        system,
        agent_arguments: vec![
            format!("sandforge.id={SANDBOX}"),
            format!("sandforge.key={}", key_to_hex(&key.verifying_key())),
        ],
        attachment: Attachment::Owned,
        console: false,
    };
    supervisor().engine(engine).unwrap().boot(spec).await.unwrap()
}

async fn connect(machine: &mut dyn Machine, key: &SigningKey) -> Guest {
    let carrier = machine.carrier().unwrap();
    let patience = Duration::from_secs(120);
    let guest = Guest::connect(carrier, SANDBOX, key.clone(), patience, None).await.unwrap();
    guest.freshen().await.unwrap();
    guest
}

async fn printed(guest: &Guest, line: &str) -> String {
    run_in(guest, shell(line)).await.unwrap().ok()
}

#[test]
fn a_guest_that_was_saved_goes_on_in_others() {
    for engine in engines() {
        if !supervisor().engine(engine).unwrap().capabilities().snapshot {
            eprintln!("not run: the engine {engine} does not save machines");
            continue;
        }
        block_on(async {
            let key = link::generate_key().unwrap();
            let mut machine = start(engine, SANDBOX, &key, system(engine)).await;
            let guest = connect(machine.as_mut(), &key).await;
            printed(&guest, "echo kept > /workspace/file; cat /proc/sys/kernel/random/uuid").await;
            machine.pause().await.unwrap();
            let file = || tempfile::tempfile().unwrap();
            let snapshot = Snapshot { memory: file(), state: file() };
            machine.save(&snapshot).await.unwrap();
            // It goes on itself.
            machine.resume().await.unwrap();
            assert_eq!(printed(&guest, "cat /workspace/file").await, "kept\n");
            machine.kill().await.unwrap();

            let mut forks = Vec::new();
            for number in 0..2 {
                let system = System::Saved(Saved {
                    snapshot: snapshot.try_clone().unwrap(),
                    disks: system(engine).guest().unwrap().disks,
                });
                let mut fork = start(engine, &format!("sb-fork-{number}"), &key, system).await;
                let guest = connect(fork.as_mut(), &key).await;
                let line = format!("cat /workspace/file; echo {number} > /workspace/file");
                assert_eq!(printed(&guest, &line).await, "kept\n");
                forks.push((fork, guest));
            }
            let mut drawn = Vec::new();
            for (number, (fork, guest)) in forks.iter_mut().enumerate() {
                let said = printed(guest, "cat /workspace/file /proc/sys/kernel/random/uuid").await;
                let (first, uuid) = said.split_once('\n').unwrap();
                assert_eq!(first, number.to_string());
                drawn.push(uuid.to_owned());
                fork.kill().await.unwrap();
            }
            assert_ne!(drawn[0], drawn[1]);
        });
    }
}

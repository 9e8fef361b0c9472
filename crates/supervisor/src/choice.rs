//! Which engine a sandbox gets.

use engine::{Isolation, SandboxBackend, Unavailable};

use crate::{Error, Observer};

type Engine = Box<dyn SandboxBackend>;

/// The engine of this name, or the strongest that runs guests here. It isolates at least as
/// strongly as `least`, and weaker than it might only with a notice that says why. Without a
/// `least`, who names an engine has chosen its tier, and who does not gets no less than an
/// emulated machine.
pub(crate) async fn choose<'a>(
    engines: &'a [Engine],
    name: Option<&str>,
    least: Option<Isolation>,
    observer: &mut dyn Observer,
) -> Result<&'a dyn SandboxBackend, Error> {
    match name {
        Some(name) => named(engines, name, least.unwrap_or(Isolation::Process)),
        None => strongest(engines, least.unwrap_or(Isolation::Emulated), observer).await,
    }
}

fn named<'a>(
    engines: &'a [Engine],
    name: &str,
    least: Isolation,
) -> Result<&'a dyn SandboxBackend, Error> {
    let engine = engines.iter().find(|engine| engine.name() == name);
    let engine = engine.ok_or_else(|| Error::NoSuchEngine(name.to_owned()))?;
    let strongest = engine.isolation();
    if strongest < least {
        let why = format!("engine {name} was asked for");
        return Err(Error::Isolation { wanted: least, strongest, why });
    }
    Ok(engine.as_ref())
}

async fn strongest<'a>(
    engines: &'a [Engine],
    least: Isolation,
    observer: &mut dyn Observer,
) -> Result<&'a dyn SandboxBackend, Error> {
    let mut failures: Vec<Unavailable> = Vec::new();
    let (strong, weak): (Vec<_>, Vec<_>) =
        engines.iter().partition(|engine| engine.isolation() >= least);
    for engine in strong {
        match engine.available().await {
            Ok(()) => {
                if let Some(failure) = failures.first() {
                    let (isolation, why) = (engine.isolation(), &failure.reason);
                    observer.notice(&format!("isolation: {isolation}, because {why}"));
                }
                return Ok(engine.as_ref());
            }
            Err(failure) => failures.push(failure),
        }
    }
    // Nobody gets a weaker engine than asked for, but is told that there is one. The weakest of
    // all is nothing to point at: whoever wants it knows its name.
    for engine in weak.into_iter().filter(|engine| engine.isolation() > Isolation::Process) {
        if engine.available().await.is_ok() {
            let why = failures.first().map_or_else(String::new, |failure| failure.reason.clone());
            let strongest = engine.isolation();
            return Err(Error::Isolation { wanted: least, strongest, why });
        }
    }
    match failures.pop() {
        Some(failure) => Err(Error::Engine(failure.into())),
        None => Err(Error::NoSuchEngine("auto".into())),
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use engine::{BootSpec, Capabilities, EngineError, Machine, Preflight};

    use super::*;
    use crate::Step;

    #[derive(Debug)]
    struct Fake(&'static str, Isolation, Option<&'static str>);

    #[async_trait]
    impl SandboxBackend for Fake {
        fn name(&self) -> &'static str {
            self.0
        }

        fn isolation(&self) -> Isolation {
            self.1
        }

        fn capabilities(&self) -> Capabilities {
            Capabilities::default()
        }

        async fn preflight(&self) -> Result<Preflight, Unavailable> {
            match self.2 {
                None => Ok(Preflight {
                    monitor: self.0.into(),
                    confinement: Vec::new(),
                    notes: Vec::new(),
                }),
                Some(reason) => Err(Unavailable { reason: reason.into(), remedy: "none".into() }),
            }
        }

        async fn boot(&self, _spec: BootSpec) -> Result<Box<dyn Machine>, EngineError> {
            unreachable!("nothing is booted here")
        }
    }

    /// An observer that keeps what it is told.
    #[derive(Default)]
    struct Notices(Vec<String>);

    impl Observer for Notices {
        fn step(&mut self, _step: Step) {}

        fn notice(&mut self, text: &str) {
            self.0.push(text.into());
        }
    }

    /// All three engines, of which these do not run here.
    fn engines(unavailable: &[&'static str]) -> Vec<Engine> {
        [("kvm", Isolation::Vm), ("qemu", Isolation::Emulated), ("process", Isolation::Process)]
            .into_iter()
            .map(|(name, isolation)| {
                let reason = unavailable.contains(&name).then_some("it is not to be had");
                Box::new(Fake(name, isolation, reason)) as Engine
            })
            .collect()
    }

    fn chosen(
        unavailable: &[&'static str],
        name: Option<&str>,
        least: impl Into<Option<Isolation>>,
    ) -> (Result<&'static str, String>, Vec<String>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut notices = Notices::default();
        let engines = engines(unavailable);
        let engine = runtime.block_on(choose(&engines, name, least.into(), &mut notices));
        (engine.map(|engine| engine.name()).map_err(|error| error.to_string()), notices.0)
    }

    #[test]
    fn the_strongest_engine_is_taken_without_a_word() {
        assert_eq!(chosen(&[], None, Isolation::Emulated), (Ok("kvm"), Vec::new()));
    }

    #[test]
    fn a_weaker_one_comes_with_the_reason() {
        let (engine, notices) = chosen(&["kvm"], None, Isolation::Emulated);
        assert_eq!(engine, Ok("qemu"));
        assert_eq!(notices, ["isolation: emulated, because it is not to be had"]);
    }

    #[test]
    fn less_than_was_asked_for_is_never_taken() {
        let (engine, _) = chosen(&["kvm"], None, Isolation::Vm);
        assert!(engine.unwrap_err().contains("as strongly as vm; the strongest is emulated"));
        let (engine, _) = chosen(&[], Some("qemu"), Isolation::Vm);
        assert!(engine.unwrap_err().contains("engine qemu was asked for"));
    }

    #[test]
    fn the_host_s_own_kernel_is_only_shared_when_asked_for() {
        let (engine, _) = chosen(&["kvm", "qemu"], None, Isolation::Emulated);
        assert_eq!(engine.unwrap_err(), "cannot start the machine");
        let (engine, _) = chosen(&["kvm", "qemu"], None, None);
        assert_eq!(engine.unwrap_err(), "cannot start the machine");
        assert_eq!(chosen(&["kvm", "qemu"], None, Isolation::Process).0, Ok("process"));
        assert_eq!(chosen(&[], Some("process"), None).0, Ok("process"));
    }

    #[test]
    fn a_floor_holds_for_an_engine_that_is_named() {
        let (engine, _) = chosen(&[], Some("process"), Isolation::Emulated);
        assert!(engine.unwrap_err().contains("engine process was asked for"));
    }
}

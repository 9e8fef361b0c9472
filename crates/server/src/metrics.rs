//! What is counted, and how it is shown to a collector.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use fleet::Manager;
use http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The text's media type.
pub(crate) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Routed {
    route: &'static str,
}

/// What this server has counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    durations: Family<Routed, Histogram>,
    in_flight: Gauge,
    unauthenticated: Counter,
    limited: Counter,
}

/// A request that is being answered.
pub(crate) struct Busy(Gauge);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub(crate) fn new(manager: &Arc<Manager>) -> Self {
        let requests = Family::default();
        let durations = Family::new_with_constructor(
            (|| Histogram::new(fleet::metrics::BUCKETS)) as fn() -> Histogram,
        );
        let (in_flight, unauthenticated, limited) =
            (Gauge::default(), Counter::default(), Counter::default());
        let mut registry = Registry::with_prefix("sandforge");
        registry.register("requests", "Requests that were answered", requests.clone());
        registry.register(
            "request_duration_seconds",
            "From a request's head until its answer's",
            durations.clone(),
        );
        registry.register("requests_in_flight", "Requests being answered", in_flight.clone());
        registry.register(
            "unauthenticated",
            "Requests whose caller is not known",
            unauthenticated.clone(),
        );
        registry.register("rate_limited", "Requests that came too fast", limited.clone());
        registry.register_collector(Box::new(Fleet(Arc::downgrade(manager))));
        Self { registry, requests, durations, in_flight, unauthenticated, limited }
    }

    pub(crate) fn begin(&self) -> Busy {
        self.in_flight.inc();
        Busy(self.in_flight.clone())
    }

    pub(crate) fn answered(&self, route: &'static str, status: StatusCode, took: Duration) {
        self.requests.get_or_create(&Answered { route, status: status.as_u16() }).inc();
        self.durations.get_or_create(&Routed { route }).observe(took.as_secs_f64());
    }

    pub(crate) fn refused(&self) {
        self.unauthenticated.inc();
    }

    pub(crate) fn limited(&self) {
        self.limited.inc();
    }

    /// All of it, as OpenMetrics text.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// What the fleet counts, read when it is asked for.
struct Fleet(Weak<Manager>);

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fleet")
    }
}

impl Collector for Fleet {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(manager) = self.0.upgrade() else { return Ok(()) };
        let metrics = manager.metrics();
        let mut sandboxes = encoder.encode_descriptor(
            "sandboxes",
            "Sandboxes by state, without those that are destroyed",
            None,
            MetricType::Gauge,
        )?;
        for state in api::State::ALL.into_iter().filter(|state| !state.is_final()) {
            let count = metrics.sandboxes.get(&state).copied().unwrap_or(0);
            let label = [("state", state.as_str())];
            ConstGauge::new(signed(count)).encode(sandboxes.encode_family(&label)?)?;
        }
        for (name, help, count) in [
            ("tasks", "Tasks that run", metrics.tasks),
            ("queued", "Sandboxes that wait to come up", metrics.queued),
        ] {
            let gauge = ConstGauge::new(signed(count));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        for (name, help, count) in [
            ("created", "Sandboxes that were made", metrics.created),
            ("destroyed", "Sandboxes of which nothing is left", metrics.destroyed),
            ("failed", "Sandboxes that failed", metrics.failed),
            ("policy_denials", "Requests that policy refused", metrics.policy_denials),
            ("access_denials", "Requests without the right", metrics.access_denials),
            ("busy", "Requests for which there was no place", metrics.refused_busy),
        ] {
            let counter = ConstCounter::new(count);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        for (name, help, durations) in [
            ("boot_duration_seconds", "From a place in the queue until ready", &metrics.boot),
            ("exec_duration_seconds", "From a command's request until its end", &metrics.exec),
        ] {
            let bounds = fleet::metrics::BUCKETS.into_iter().chain([f64::MAX]);
            let buckets: Vec<(f64, u64)> = bounds.zip(durations.buckets.iter().copied()).collect();
            encoder
                .encode_descriptor(name, help, None, MetricType::Histogram)?
                .encode_histogram::<NoLabelSet>(
                    durations.sum_sec,
                    durations.count,
                    &buckets,
                    None,
                )?;
        }
        Ok(())
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

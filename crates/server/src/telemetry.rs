//! Traces, where an operator wants them: spans over OTLP, when `OTEL_EXPORTER_OTLP_ENDPOINT` says
//! where to. Otherwise nothing of it runs.

use http::{HeaderMap, Method, StatusCode};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, Tracer};
use tokio::runtime::Handle;
use tracing::{Span, Subscriber, field};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt as _};
use tracing_subscriber::registry::LookupSpan;

/// The variables that ask for traces.
const VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// Traces cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("cannot send traces to where OTEL_EXPORTER_OTLP_ENDPOINT says: {0}")]
pub struct TelemetryError(String);

/// Sends traces until it is shut down.
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkTracerProvider,
}

impl Telemetry {
    /// Begins, where the environment asks for it. To be called where tokio runs.
    ///
    /// # Errors
    /// `TelemetryError` where the environment asks for something that cannot be done.
    pub fn start() -> Result<Option<Self>, TelemetryError> {
        let asked = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if !VARIABLES.iter().any(|name| asked(name)) {
            return Ok(None);
        }
        let failed = |error: &dyn std::fmt::Display| TelemetryError(error.to_string());
        let client = reqwest::Client::builder().build().map_err(|error| failed(&error))?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(OnTokio { handle: Handle::current(), client })
            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
            .build()
            .map_err(|error| failed(&error))?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(Resource::builder().with_service_name("sandforge").build())
            .build();
        Ok(Some(Self { provider }))
    }

    /// What turns spans of `tracing` into traces.
    pub fn layer<S>(&self) -> OpenTelemetryLayer<S, Tracer>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        tracing_opentelemetry::layer().with_tracer(self.provider.tracer("sandforge"))
    }

    /// Sends what there is. Blocks, so it does not belong on a thread that tokio needs.
    pub fn shutdown(&self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "the last traces are lost");
        }
    }
}

/// The exporter's own thread has no runtime, and the HTTP client needs one.
#[derive(Debug)]
struct OnTokio {
    handle: Handle,
    client: reqwest::Client,
}

#[async_trait::async_trait]
impl HttpClient for OnTokio {
    async fn send_bytes(
        &self,
        request: http::Request<bytes::Bytes>,
    ) -> Result<http::Response<bytes::Bytes>, HttpError> {
        let client = self.client.clone();
        self.handle.spawn(async move { client.send_bytes(request).await }).await?
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// The span of a request, which goes on with its caller's trace. What the caller wrote is not in
/// it: a path may hold what a log should not.
pub(crate) fn span(headers: &HeaderMap, method: &Method, route: &'static str, id: &str) -> Span {
    let span = tracing::info_span!(
        "request",
        otel.name = route,
        otel.kind = "server",
        http.request.method = %method,
        http.route = route,
        request = id,
        http.response.status_code = field::Empty,
    );
    if headers.contains_key("traceparent") {
        // Without a layer that makes traces there is nothing to set it in.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&Headers(headers)));
    }
    span
}

pub(crate) fn answered(span: &Span, status: StatusCode) {
    span.record("http.response.status_code", status.as_u16());
}

//! Sends metrics and slow reads to an OpenTelemetry collector (OTLP over gRPC).
//!
//! The metrics are those of `/metrics`, under the same names, with the identity of the mount as
//! the resource. Each slow read becomes a trace: a span for the read, and one for each step of the
//! fetches that it waited for. A collector that does not answer costs one line in the log; what it
//! has missed of the counters is in the next message, and of slow reads as far as they are kept.
//!
//! The messages: <https://opentelemetry.io/docs/specs/otlp/>.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use daemon::prometheus::{MetricFamily, MetricSample, SampleValue};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span, Status as SpanStatus, span, status::StatusCode,
};
use tonic::transport::{Channel, Endpoint};

use super::answered_read::{AnsweredRead, ReadStep};
use super::export;
use super::status::{MountIdentity, Status};

/// How often a message is sent.
const EXPORT_INTERVAL: Duration = Duration::from_secs(15);
/// How long a connection, and the answer to a message, may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a collector is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtlpAddress(String);

impl FromStr for OtlpAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str =
            "expected http://HOST:PORT; a collector that wants TLS is reached through one on this host";
        let authority = text.strip_prefix("http://").ok_or(EXPECTED)?.trim_end_matches('/');
        let (host, port) = authority.rsplit_once(':').ok_or(EXPECTED)?;
        let is_address = !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0);
        let is_endpoint = || Endpoint::from_shared(format!("http://{authority}")).is_ok();
        // A user name or a password would not be used, and would show in the log.
        if is_address && !authority.contains(['/', '@']) && is_endpoint() {
            Ok(Self(format!("http://{authority}")))
        } else {
            Err(EXPECTED)
        }
    }
}

/// Sends what a mount measures.
pub struct OtlpExporter {
    address: OtlpAddress,
    metrics: MetricsServiceClient<Channel>,
    traces: TraceServiceClient<Channel>,
    status: Arc<Status>,
    resource: Resource,
    /// When the counters began, in nanoseconds since 1970.
    started: u64,
    /// How many of all slow reads have been sent.
    sent_reads: u64,
}

impl OtlpExporter {
    /// An exporter of `status`, not connected yet. To be called on a runtime.
    ///
    /// # Errors
    /// When `address` is none.
    pub fn new(address: OtlpAddress, status: Arc<Status>) -> Result<Self, tonic::transport::Error> {
        let endpoint =
            Endpoint::from_shared(address.0.clone())?.connect_timeout(EXPORT_TIMEOUT).timeout(EXPORT_TIMEOUT);
        let channel = endpoint.connect_lazy();
        Ok(Self {
            address,
            metrics: MetricsServiceClient::new(channel.clone()),
            traces: TraceServiceClient::new(channel),
            resource: resource(status.identity()),
            status,
            started: nanos_now(),
            sent_reads: 0,
        })
    }

    /// Sends messages again and again.
    pub async fn run(mut self) {
        let mut ticks = tokio::time::interval(EXPORT_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = [false; 2];
        loop {
            ticks.tick().await;
            let sent =
                [("metrics", self.export_metrics().await), ("slow reads", self.export_slow_reads().await)];
            for ((signal, sent), is_failing) in sent.iter().zip(&mut failing) {
                let address = &self.address.0;
                match sent {
                    Err(status) if !*is_failing => {
                        let (code, reason) = (status.code(), status.message());
                        tracing::warn!(address, ?code, reason, "{signal} do not reach the collector");
                    }
                    Ok(()) if *is_failing => tracing::info!(address, "{signal} reach the collector again"),
                    _ => {}
                }
                *is_failing = sent.is_err();
            }
        }
    }

    async fn export_metrics(&mut self) -> Result<(), tonic::Status> {
        let is_ready = self.status.ready().await.is_ok();
        let families = export::exposition(self.status.metrics(), self.status.identity(), is_ready);
        let times = (self.started, nanos_now());
        let metrics = families.families().iter().map(|family| metric(family, times)).collect();
        let resource_metrics = ResourceMetrics {
            resource: Some(self.resource.clone()),
            scope_metrics: vec![ScopeMetrics { scope: Some(scope()), metrics, ..Default::default() }],
            ..Default::default()
        };
        let request = ExportMetricsServiceRequest { resource_metrics: vec![resource_metrics] };
        self.metrics.export(request).await.map(drop)
    }

    async fn export_slow_reads(&mut self) -> Result<(), tonic::Status> {
        let (total, reads) = self.status.metrics().slow_reads().after(self.sent_reads);
        if !reads.is_empty() {
            let spans = reads.iter().flat_map(spans).collect();
            let resource_spans = ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans { scope: Some(scope()), spans, ..Default::default() }],
                ..Default::default()
            };
            self.traces.export(ExportTraceServiceRequest { resource_spans: vec![resource_spans] }).await?;
        }
        self.sent_reads = total;
        Ok(())
    }
}

fn resource(identity: &MountIdentity) -> Resource {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim_end();
    let attributes = vec![
        text("service.name", "interceptor"),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("service.instance.id", &format!("{host}:{}", identity.mount_point)),
        text("host.name", host),
        text("interceptor.mount_point", &identity.mount_point),
        text("interceptor.filer_path", &identity.filer_path),
    ];
    Resource { attributes, ..Default::default() }
}

fn scope() -> InstrumentationScope {
    let (name, version) = ("interceptor".into(), env!("CARGO_PKG_VERSION").into());
    InstrumentationScope { name, version, ..Default::default() }
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: u64) -> KeyValue {
    attribute(key, any_value::Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

/// A metric of `/metrics`; what has no number at the moment is left out.
fn metric(family: &MetricFamily, times: (u64, u64)) -> Metric {
    let cumulative = AggregationTemporality::Cumulative.into();
    let numbers = || family.samples.iter().filter_map(|sample| number_point(sample, times)).collect();
    let data = match family.kind {
        "counter" => metric::Data::Sum(Sum {
            data_points: numbers(),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        "histogram" => metric::Data::Histogram(Histogram {
            data_points: family.samples.iter().filter_map(|sample| histogram_point(sample, times)).collect(),
            aggregation_temporality: cumulative,
        }),
        _ => metric::Data::Gauge(Gauge { data_points: numbers() }),
    };
    let base = family.name.trim_end_matches("_total");
    let unit = match base.rsplit('_').next() {
        Some("seconds") => "s",
        Some("bytes") => "By",
        _ => "",
    };
    Metric {
        name: family.name.to_owned(),
        description: family.help.clone(),
        unit: unit.to_owned(),
        data: Some(data),
        ..Default::default()
    }
}

fn attributes(sample: &MetricSample) -> Vec<KeyValue> {
    sample.labels.iter().map(|(name, value)| text(name, value)).collect()
}

fn number_point(sample: &MetricSample, (started, now): (u64, u64)) -> Option<NumberDataPoint> {
    let SampleValue::Number(written) = &sample.value else { return None };
    // Of one type for all points of a metric: a ratio of 1 is written without a point.
    let value = written.parse::<f64>().ok().filter(|value| !value.is_nan())?;
    Some(NumberDataPoint {
        attributes: attributes(sample),
        start_time_unix_nano: started,
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..Default::default()
    })
}

fn histogram_point(sample: &MetricSample, (started, now): (u64, u64)) -> Option<HistogramDataPoint> {
    let SampleValue::Histogram { buckets, sum } = &sample.value else { return None };
    Some(HistogramDataPoint {
        attributes: attributes(sample),
        start_time_unix_nano: started,
        time_unix_nano: now,
        count: buckets.iter().map(|(_, count)| count).sum(),
        sum: Some(*sum),
        bucket_counts: buckets.iter().map(|(_, count)| *count).collect(),
        explicit_bounds: buckets.iter().filter_map(|(bound, _)| *bound).collect(),
        ..Default::default()
    })
}

/// A span for a slow read, and one for each of its steps.
fn spans(read: &AnsweredRead) -> Vec<Span> {
    let trace_id = rand::random::<[u8; 16]>().to_vec();
    let root_id = rand::random::<[u8; 8]>().to_vec();
    let begun = read.at - read.seconds;
    let root = Span {
        trace_id: trace_id.clone(),
        span_id: root_id.clone(),
        name: "read".to_owned(),
        kind: span::SpanKind::Server.into(),
        start_time_unix_nano: nanos(begun),
        end_time_unix_nano: nanos(read.at),
        attributes: vec![
            text("file.path", &read.path),
            number("interceptor.offset", read.offset),
            number("interceptor.len", read.len),
            number("thread.id", read.caller.into()),
            text("thread.name", &read.caller_name),
        ],
        status: read.error.as_deref().map(failed),
        ..Default::default()
    };
    let step = |step: &ReadStep| {
        let (start, end) = (nanos(begun + step.begun), nanos(begun + step.begun + step.seconds));
        let first_byte = step.first_byte.map(|first| span::Event {
            time_unix_nano: nanos(begun + step.begun + first),
            name: "first byte".to_owned(),
            ..Default::default()
        });
        Span {
            trace_id: trace_id.clone(),
            span_id: rand::random::<[u8; 8]>().to_vec(),
            parent_span_id: root_id.clone(),
            name: step.source.as_ref().unwrap_or(&step.step).clone(),
            kind: if step.source.is_some() { span::SpanKind::Client } else { span::SpanKind::Internal }
                .into(),
            start_time_unix_nano: start,
            end_time_unix_nano: end,
            attributes: step.server.iter().map(|server| text("server.address", server)).collect(),
            events: first_byte.into_iter().collect(),
            status: step.error.as_deref().map(failed),
            ..Default::default()
        }
    };
    std::iter::once(root).chain(read.steps.iter().map(step)).collect()
}

fn failed(error: &str) -> SpanStatus {
    SpanStatus { message: error.to_owned(), code: StatusCode::Error.into() }
}

fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

fn nanos_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use daemon::prometheus::Exposition;
    use parking_lot::Mutex;
    use prost::Message;

    use super::*;
    use crate::arrival::Arrival;
    use crate::seaweed::scripted_filer::{self, ScriptedReply};
    use crate::telemetry::Metrics;
    use crate::telemetry::answered_read::ReadTarget;

    /// What a collector has received.
    #[derive(Default)]
    struct Received {
        metrics: Vec<ExportMetricsServiceRequest>,
        traces: Vec<ExportTraceServiceRequest>,
    }

    #[tokio::test]
    async fn a_collector_receives_everything_also_after_it_was_down() {
        let (received, is_down) =
            (Arc::new(Mutex::new(Received::default())), Arc::new(AtomicBool::new(true)));
        let (inbox, refuses) = (received.clone(), is_down.clone());
        let collector = scripted_filer::start_service(move |path, message| {
            if refuses.load(Ordering::SeqCst) {
                return ScriptedReply::Status(14);
            }
            let mut inbox = inbox.lock();
            match path {
                "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export" => {
                    inbox.metrics.push(ExportMetricsServiceRequest::decode(message).unwrap());
                }
                "/opentelemetry.proto.collector.trace.v1.TraceService/Export" => {
                    inbox.traces.push(ExportTraceServiceRequest::decode(message).unwrap());
                }
                other => panic!("{other}"),
            }
            ScriptedReply::Message(Vec::new())
        });
        let collector = collector.await;
        let identity = MountIdentity { mount_point: "/mnt".into(), ..MountIdentity::default() };
        let status = Status::new(identity, Metrics::new());
        let address = format!("http://127.0.0.1:{}", collector.grpc_port).parse().unwrap();
        let mut exporter = OtlpExporter::new(address, status.clone()).unwrap();

        let slow_reads = status.metrics().slow_reads();
        slow_reads.set_threshold(Duration::ZERO);
        let target = ReadTarget { path: "/file", offset: 0, len: 1, caller: 0 };
        slow_reads.begin(target, Arrival::now()).end(None, &[]);
        assert_eq!(exporter.export_metrics().await.unwrap_err().code(), tonic::Code::Unavailable);
        assert_eq!(exporter.export_slow_reads().await.unwrap_err().code(), tonic::Code::Unavailable);
        is_down.store(false, Ordering::SeqCst);
        for _ in 0..2 {
            exporter.export_metrics().await.unwrap();
            exporter.export_slow_reads().await.unwrap();
        }

        let received = received.lock();
        assert_eq!((received.metrics.len(), received.traces.len()), (2, 1), "a read is sent once");
        let sent = &received.metrics[0].resource_metrics[0];
        assert!(
            sent.resource.as_ref().unwrap().attributes.contains(&text("interceptor.mount_point", "/mnt"))
        );
        let names: Vec<_> = sent.scope_metrics[0].metrics.iter().map(|metric| metric.name.clone()).collect();
        let exposition = export::exposition(status.metrics(), status.identity(), false);
        let expected: Vec<_> = exposition.families().iter().map(|family| family.name.to_owned()).collect();
        assert_eq!(names, expected, "all of /metrics");
        let span = &received.traces[0].resource_spans[0].scope_spans[0].spans[0];
        assert!(span.attributes.contains(&text("file.path", "/file")));
    }

    #[test]
    fn addresses_are_checked() {
        for good in ["http://127.0.0.1:4317", "http://collector:4317/", "http://[::1]:4317"] {
            assert!(good.parse::<OtlpAddress>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "collector:4317",
            "https://a:4317",
            "http://a",
            "http://:1",
            "http://a:0",
            "http://a:1/v1",
            "http://user:word@a:1",
        ] {
            assert!(bad.parse::<OtlpAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn metrics_keep_their_names_values_and_labels() {
        let mut out = Exposition::default();
        out.family("a_bytes_total", "counter", "A.").sample(&[("source", "http")], 7);
        out.family("b_ratio", "gauge", "B.").sample(&[], 0.5).sample(&[("window", "1m")], f64::NAN);
        out.family("c_seconds", "histogram", "C.").histogram(&[], [(Some(0.1), 2), (None, 3)], 4.5);
        let metrics: Vec<_> = out.families().iter().map(|family| metric(family, (1, 2))).collect();

        let [counter, gauge, histogram] = metrics.try_into().unwrap();
        assert_eq!((counter.name.as_str(), counter.unit.as_str()), ("a_bytes_total", "By"));
        let Some(metric::Data::Sum(sum)) = counter.data else { panic!("{:?}", counter.data) };
        assert!(sum.is_monotonic);
        assert_eq!(sum.data_points[0].value, Some(number_data_point::Value::AsDouble(7.0)));
        assert_eq!(sum.data_points[0].attributes, [text("source", "http")]);
        let Some(metric::Data::Gauge(gauge)) = gauge.data else { panic!("{:?}", gauge.data) };
        assert_eq!(gauge.data_points.len(), 1, "without NaN");
        let Some(metric::Data::Histogram(distribution)) = histogram.data else {
            panic!("{:?}", histogram.data)
        };
        let point = &distribution.data_points[0];
        assert_eq!(
            (point.count, point.sum, &point.bucket_counts[..], &point.explicit_bounds[..]),
            (5, Some(4.5), &[2, 3][..], &[0.1][..])
        );
    }

    #[test]
    fn the_steps_of_a_read_are_spans_within_its_trace() {
        let request = ReadStep {
            step: "request".into(),
            server: Some("volume:8080".into()),
            source: Some("http".into()),
            begun: 0.5,
            seconds: 1.0,
            first_byte: Some(0.25),
            error: Some("refused".into()),
            note: None,
        };
        let read = AnsweredRead {
            at: 1_000_000.0,
            path: "/file".into(),
            offset: 0,
            len: 4096,
            caller: 7,
            caller_name: "cat".into(),
            seconds: 2.0,
            error: None,
            steps: vec![request],
        };
        let [root, step] = spans(&read).try_into().unwrap();
        assert_eq!((root.trace_id.len(), root.span_id.len()), (16, 8));
        assert_eq!((&step.trace_id, &step.parent_span_id), (&root.trace_id, &root.span_id));
        assert_eq!(step.start_time_unix_nano - root.start_time_unix_nano, 500_000_000);
        assert_eq!(step.events[0].time_unix_nano - step.start_time_unix_nano, 250_000_000);
        assert_eq!((root.status, step.status.unwrap().message.as_str()), (None, "refused"));
    }
}

//! The formats of metrics, who asks for which, and how long he waits.
//!
//! In: the headers `Accept` and `X-Prometheus-Scrape-Timeout-Seconds`. Out: a format and a time.
//! Whoever names no format that is known gets text, as Prometheus' own libraries do it.

use std::time::Duration;

use axum::http::{HeaderMap, header::ACCEPT};

pub(super) const METRICS_MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const PROTOBUF_MEDIA_TYPE: &str = "application/vnd.google.protobuf; \
                                   proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// What Prometheus says in each scrape (`scrape/scrape.go` in its repository): after so many seconds
/// it gives up, and takes the daemon for down.
const TIMEOUT_HEADER: &str = "x-prometheus-scrape-timeout-seconds";

/// The longest that the kernel's counters are waited for: less than Prometheus waits, which is 10 s
/// where it is not told otherwise.
const PATIENCE_MAX: Duration = Duration::from_secs(8);

/// As much of the time that a client waits goes to the kernel; the rest is for everything else.
const PATIENCE_OF_TIMEOUT: f64 = 0.7;

/// How long the kernel's counters may be waited for, so that who asks gets an answer in time.
pub(super) fn patience(headers: &HeaderMap) -> Duration {
    let timeout = headers.get(TIMEOUT_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
    let patience = timeout.map(|seconds: f64| seconds * PATIENCE_OF_TIMEOUT);
    let patience = patience.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    patience.unwrap_or(PATIENCE_MAX).min(PATIENCE_MAX)
}

/// A format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricsFormat {
    /// Prometheus' text format, version 0.0.4.
    Text,
    /// Messages `io.prometheus.client.MetricFamily`, each behind its length.
    Protobuf,
}

impl MetricsFormat {
    pub(super) const fn media_type(self) -> &'static str {
        match self {
            MetricsFormat::Text => METRICS_MEDIA_TYPE,
            MetricsFormat::Protobuf => PROTOBUF_MEDIA_TYPE,
        }
    }

    /// The one of them that a client would rather have.
    pub(super) fn accepted(headers: &HeaderMap) -> MetricsFormat {
        let ranges = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let ranges = ranges.flat_map(|value| value.split(','));
        let (mut text, mut protobuf) = (0.0_f32, 0.0_f32);
        for range in ranges {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default();
            let mut quality: f32 = 1.0;
            let (mut is_family, mut is_delimited) = (false, false);
            for part in parts {
                match part.split_once('=') {
                    Some(("q", value)) => quality = value.parse().unwrap_or(0.0),
                    Some(("proto", value)) => {
                        is_family = value == "io.prometheus.client.MetricFamily"
                    }
                    Some(("encoding", value)) => is_delimited = value == "delimited",
                    _ => {}
                }
            }
            let best = match media_type {
                "application/vnd.google.protobuf" if is_family && is_delimited => &mut protobuf,
                "text/plain" | "text/*" | "*/*" => &mut text,
                _ => continue,
            };
            *best = quality.max(*best);
        }
        if protobuf > text { MetricsFormat::Protobuf } else { MetricsFormat::Text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(accept: &str) -> MetricsFormat {
        let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
        MetricsFormat::accepted(&headers)
    }

    #[test]
    fn prometheus_gets_what_it_would_rather_have() {
        // What Prometheus 3 sends, with protobuf first and without.
        let protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
                        encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,\
                        text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(accepted(protobuf), MetricsFormat::Protobuf);
        let text = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;\
                    q=0.3,application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
                    encoding=delimited;q=0.2";
        assert_eq!(accepted(text), MetricsFormat::Text);
    }

    #[test]
    fn the_kernel_has_less_time_than_who_asks_and_a_strange_wish_is_none() {
        for (timeout, milliseconds) in
            [("4", 2800), ("0.5", 350), ("0", 0), ("10", 7000), ("60", 8000), ("1e300", 8000)]
        {
            let headers = HeaderMap::from_iter([(
                axum::http::HeaderName::from_static(TIMEOUT_HEADER),
                timeout.parse().unwrap(),
            )]);
            assert_eq!(patience(&headers), Duration::from_millis(milliseconds), "{timeout}");
        }
        for strange in ["", "-1", "NaN", "inf", "soon"] {
            let headers = HeaderMap::from_iter([(
                axum::http::HeaderName::from_static(TIMEOUT_HEADER),
                strange.parse().unwrap(),
            )]);
            assert_eq!(patience(&headers), PATIENCE_MAX, "{strange}");
        }
        assert_eq!(patience(&HeaderMap::new()), PATIENCE_MAX);
    }

    #[test]
    fn who_asks_for_nothing_known_gets_text() {
        for accept in
            ["*/*", "", "application/json", "application/vnd.google.protobuf", "text/html;q=x"]
        {
            assert_eq!(accepted(accept), MetricsFormat::Text, "{accept}");
        }
        assert_eq!(MetricsFormat::accepted(&HeaderMap::new()), MetricsFormat::Text);
    }
}

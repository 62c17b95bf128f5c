//! Says in the log when a volume server becomes much slower than the others, and when it no longer
//! is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::telemetry::Metrics;
use crate::telemetry::health::{Slowness, VolumeServerHealth};

/// How often the servers are looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The log says that a server is no longer slow after it has not been for so long: one that comes
/// and goes writes no more than two lines in this time.
const RECOVERY_TIME: Duration = Duration::from_secs(60);

/// Looks at the volume servers until the runtime shuts down.
pub(super) async fn log_slow_servers(metrics: Arc<Metrics>) {
    let mut ticks = interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut slow = SlowServers::default();
    loop {
        let now = ticks.tick().await;
        for change in slow.update(metrics.volume_servers().unwrap_or_default(), now) {
            match change {
                SpeedChange::TurnedSlow(server, Slowness { p50_seconds, usual_p50_seconds }) => {
                    let [p50, others_p50] = [p50_seconds, usual_p50_seconds].map(Duration::from_secs_f64);
                    let (p50, others_p50) = (format!("{p50:.0?}"), format!("{others_p50:.1?}"));
                    tracing::warn!(server, p50, others_p50, "a volume server is much slower than the others");
                }
                SpeedChange::Recovered(server) => {
                    tracing::info!(server, "a volume server is no longer slow, or not asked any more");
                }
            }
        }
    }
}

/// What is new of a server.
#[derive(Debug, PartialEq)]
enum SpeedChange {
    TurnedSlow(String, Slowness),
    Recovered(String),
}

/// The servers of which the log has said that they are slow, and when they last were.
#[derive(Debug, Default)]
struct SlowServers(BTreeMap<String, Instant>);

impl SlowServers {
    fn update(&mut self, servers: Vec<VolumeServerHealth>, now: Instant) -> Vec<SpeedChange> {
        let mut changes = Vec::new();
        for server in servers {
            if server.is_silent {
                // It has got worse.
                if let Some(last) = self.0.get_mut(&server.address) {
                    *last = now;
                }
            } else if let Some(slowness) = server.slow
                && self.0.insert(server.address.clone(), now).is_none()
            {
                changes.push(SpeedChange::TurnedSlow(server.address, slowness));
            }
        }
        let recovered = self.0.extract_if(.., |_, last| now.duration_since(*last) >= RECOVERY_TIME);
        changes.extend(recovered.map(|(server, _)| SpeedChange::Recovered(server)));
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_comes_and_goes_is_said_once() {
        let slowness = Slowness { p50_seconds: 0.5, usual_p50_seconds: 0.002 };
        let server =
            |slow| VolumeServerHealth { address: "a:1".into(), slow, ..VolumeServerHealth::default() };
        let (mut slow, begun) = (SlowServers::default(), Instant::now());
        assert_eq!(slow.update(vec![server(None)], begun), []);
        let turned = [SpeedChange::TurnedSlow("a:1".into(), slowness)];
        assert_eq!(slow.update(vec![server(Some(slowness))], begun), turned);
        for tick in 1..=40 {
            let is_slow = (tick % 2 == 0).then_some(slowness);
            assert_eq!(slow.update(vec![server(is_slow)], begun + tick * POLL_INTERVAL), []);
        }
        let silent = VolumeServerHealth { is_silent: true, ..server(None) };
        let hung = begun + 40 * POLL_INTERVAL + RECOVERY_TIME;
        assert_eq!(slow.update(vec![silent], hung), []);
        let recovered = [SpeedChange::Recovered("a:1".into())];
        assert_eq!(slow.update(vec![server(None)], hung + RECOVERY_TIME), recovered);
        assert_eq!(slow.update(vec![server(None)], hung + 2 * RECOVERY_TIME), []);
    }
}

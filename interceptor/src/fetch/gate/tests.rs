//! The gate against a model: a list that is searched from the start after each change.

use std::future::pending;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Wake, Waker};

use proptest::prelude::*;

use super::*;
use crate::arrival::Arrival;

#[derive(Debug, Clone)]
enum Event {
    /// A request comes.
    Arrive(Urgency, u64),
    /// One of the requests goes, from the queue or in flight.
    Leave(usize),
    /// A reader joins one of the requests.
    Raise(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let urgency = prop_oneof![Just(Urgency::Demand), Just(Urgency::Speculative)];
    let event = prop_oneof![
        3 => (urgency, 0u64..15).prop_map(|(urgency, bytes)| Event::Arrive(urgency, bytes)),
        2 => any::<usize>().prop_map(Event::Leave),
        1 => any::<usize>().prop_map(Event::Raise),
    ];
    prop::collection::vec(event, 1..80)
}

/// A request in the model.
#[derive(Debug, Clone, Copy, PartialEq)]
struct ModelRequest {
    urgency: Urgency,
    bytes: u64,
    inflight: bool,
}

fn load<'a>(inflight: impl Iterator<Item = &'a ModelRequest>) -> Load {
    inflight.fold(Load::default(), |load, one| Load {
        requests: load.requests + 1,
        bytes: load.bytes + one.bytes,
    })
}

/// Admits the requests that may go, given all in the order of their arrival.
fn settle(bound: Load, all: &mut [ModelRequest]) {
    loop {
        let inflight = load(all.iter().filter(|one| one.inflight));
        let speculation = |one: &&ModelRequest| one.inflight && one.urgency == Urgency::Speculative;
        let speculation = load(all.iter().filter(speculation));
        let fits = |bound: Load, inflight: Load, bytes| {
            inflight.requests == 0
                || (inflight.requests < bound.requests && inflight.bytes + bytes <= bound.bytes)
        };
        let half = Load { requests: (bound.requests / 2).max(1), bytes: bound.bytes / 2 };
        let waits = |urgency| move |one: &&mut ModelRequest| !one.inflight && one.urgency == urgency;
        let next = match all.iter_mut().find(waits(Urgency::Demand)) {
            Some(demand) => Some(demand).filter(|one| fits(bound, inflight, one.bytes)),
            None => all
                .iter_mut()
                .find(waits(Urgency::Speculative))
                .filter(|one| fits(bound, inflight, one.bytes) && fits(half, speculation, one.bytes)),
        };
        match next {
            Some(one) => one.inflight = true,
            None => return,
        }
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// A request at the real gate: a future that holds its permit for ever, polled only when it was
/// woken.
struct GateRequest {
    priority: Priority,
    inflight: Arc<AtomicBool>,
    holding: Pin<Box<dyn Future<Output = ()>>>,
    woken: Arc<Woken>,
}

impl GateRequest {
    fn arrive(gate: &Arc<Gate>, urgency: Urgency, bytes: u64) -> Self {
        let (gate, priority, inflight) = (gate.clone(), Priority::new(urgency), Arc::<AtomicBool>::default());
        let (admitted, own) = (inflight.clone(), priority.clone());
        let holding = Box::pin(async move {
            let permit = gate.acquire(&own, bytes).await;
            admitted.store(true, SeqCst);
            permit.run(&own, pending()).await
        });
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        Self { priority, inflight, holding, woken }
    }

    /// Polls if woken; returns whether it was.
    fn run(&mut self) -> bool {
        let woken = self.woken.0.swap(false, SeqCst);
        if woken {
            let waker = Waker::from(self.woken.clone());
            assert!(self.holding.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        woken
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Never beyond the bound, in the order of the model, and each admitted request is woken.
    #[test]
    fn the_gate_admits_what_the_model_admits(requests in 1usize..6, bytes in 0u64..30, events in events()) {
        let bound = Load { requests, bytes };
        let gate = Gate::new(bound);
        let (mut real, mut model) = (Vec::<GateRequest>::new(), Vec::<ModelRequest>::new());
        for event in events {
            match event {
                Event::Arrive(urgency, bytes) => {
                    real.push(GateRequest::arrive(&gate, urgency, bytes));
                    model.push(ModelRequest { urgency, bytes, inflight: false });
                }
                Event::Leave(_) | Event::Raise(_) if model.is_empty() => continue,
                Event::Leave(nth) => {
                    let nth = nth % model.len();
                    drop(real.remove(nth));
                    model.remove(nth);
                }
                Event::Raise(nth) => {
                    let nth = nth % model.len();
                    prop_assert!(real[nth].priority.raise(Arrival::now()));
                    model[nth].urgency = Urgency::Demand;
                }
            }
            while real.iter_mut().fold(false, |any, request| request.run() | any) {}
            settle(bound, &mut model);
            let seen: Vec<_> = real.iter().map(|request| request.inflight.load(SeqCst)).collect();
            let expected: Vec<_> = model.iter().map(|one| one.inflight).collect();
            prop_assert_eq!(seen, expected, "{:?}", model);
            let inflight = load(model.iter().filter(|one| one.inflight));
            prop_assert!(inflight.requests <= 1 || (inflight.requests <= requests && inflight.bytes <= bytes));
        }
        drop(real);
        prop_assert_eq!(gate.queue.lock().inflight(), Load::default());
    }
}

/// A demand that waits keeps back speculation, even such as came before it.
#[tokio::test]
async fn speculation_yields_to_a_demand_that_waits() {
    let gate = Gate::new(Load { requests: 4, bytes: 100 });
    let demand = Priority::new(Urgency::Demand);
    let [first, second] = [gate.acquire(&demand, 60).await, gate.acquire(&demand, 40).await];
    let speculative = Priority::new(Urgency::Speculative);
    let mut early = GateRequest::arrive(&gate, Urgency::Speculative, 1);
    early.run();
    let mut waiting = GateRequest::arrive(&gate, Urgency::Demand, 70);
    waiting.run();
    drop(second);
    early.run();
    assert!(!early.inflight.load(SeqCst), "there is room, but a demand waits for more");
    drop(first);
    waiting.run();
    early.run();
    assert!(waiting.inflight.load(SeqCst) && early.inflight.load(SeqCst));
    drop((waiting, early));
    gate.acquire(&speculative, 50).await;
}

/// Threads that acquire, release, give up and are raised; the test hangs if a wake-up is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_up_is_lost_between_threads() {
    let gate = Gate::new(Load { requests: 3, bytes: 10 });
    let tasks = (0..2000_u64).map(|number| {
        let gate = gate.clone();
        tokio::spawn(async move {
            let urgency = if number % 3 == 0 { Urgency::Demand } else { Urgency::Speculative };
            let priority = Priority::new(urgency);
            let held = async {
                let permit = gate.acquire(&priority, number % 8).await;
                permit.run(&priority, tokio::task::yield_now()).await;
            };
            tokio::select! {
                () = held => {}
                () = async { for _ in 0..number % 50 { tokio::task::yield_now().await } }, if number % 5 == 0 => {}
                () = async { tokio::task::yield_now().await; priority.raise(Arrival::now()); pending().await } => {}
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(gate.queue.lock().inflight(), Load::default());
}

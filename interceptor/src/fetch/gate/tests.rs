//! The gate against a list that is gone through from the top after each change.

use std::future::pending;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Wake, Waker};

use proptest::prelude::*;

use super::*;
use crate::arrival::Arrival;

#[derive(Debug, Clone)]
enum Event {
    /// Somebody comes.
    Come(Urgency, u64),
    /// One of those that are there goes, from the queue or from inside.
    Go(usize),
    /// A reader joins one of those that are there.
    Raise(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let urgency = prop_oneof![Just(Urgency::Demand), Just(Urgency::Speculative)];
    let event = prop_oneof![
        3 => (urgency, 0u64..15).prop_map(|(urgency, bytes)| Event::Come(urgency, bytes)),
        2 => any::<usize>().prop_map(Event::Go),
        1 => any::<usize>().prop_map(Event::Raise),
    ];
    prop::collection::vec(event, 1..80)
}

/// One that came, as the model sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Modelled {
    urgency: Urgency,
    bytes: u64,
    inside: bool,
}

fn load<'a>(inside: impl Iterator<Item = &'a Modelled>) -> Load {
    inside.fold(Load::default(), |load, one| Load {
        requests: load.requests + 1,
        bytes: load.bytes + one.bytes,
    })
}

/// Lets in whoever may go in, given all in the order of their arrival.
fn settle(bound: Load, all: &mut [Modelled]) {
    loop {
        let inside = load(all.iter().filter(|one| one.inside));
        let speculation = |one: &&Modelled| one.inside && one.urgency == Urgency::Speculative;
        let speculation = load(all.iter().filter(speculation));
        let fits = |bound: Load, inside: Load, bytes| {
            inside.requests == 0 || (inside.requests < bound.requests && inside.bytes + bytes <= bound.bytes)
        };
        let half = Load { requests: (bound.requests / 2).max(1), bytes: bound.bytes / 2 };
        let waits = |urgency| move |one: &&mut Modelled| !one.inside && one.urgency == urgency;
        let next = match all.iter_mut().find(waits(Urgency::Demand)) {
            Some(demand) => Some(demand).filter(|one| fits(bound, inside, one.bytes)),
            None => all
                .iter_mut()
                .find(waits(Urgency::Speculative))
                .filter(|one| fits(bound, inside, one.bytes) && fits(half, speculation, one.bytes)),
        };
        match next {
            Some(one) => one.inside = true,
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

/// One that came, as it is: a future that goes in and stays there, polled only when it was woken.
struct Visitor {
    priority: Priority,
    inside: Arc<AtomicBool>,
    stay: Pin<Box<dyn Future<Output = ()>>>,
    woken: Arc<Woken>,
}

impl Visitor {
    fn come(gate: &Arc<Gate>, urgency: Urgency, bytes: u64) -> Self {
        let (gate, priority, inside) = (gate.clone(), Priority::new(urgency), Arc::<AtomicBool>::default());
        let (entered, own) = (inside.clone(), priority.clone());
        let stay = Box::pin(async move {
            let pass = gate.enter(&own, bytes).await;
            entered.store(true, SeqCst);
            pass.during(&own, pending()).await
        });
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        Self { priority, inside, stay, woken }
    }

    /// Polls if woken; returns whether it was.
    fn run(&mut self) -> bool {
        let woken = self.woken.0.swap(false, SeqCst);
        if woken {
            let waker = Waker::from(self.woken.clone());
            assert!(self.stay.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        woken
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Never beyond the bound, in the order of the model, and whoever may go in is woken.
    #[test]
    fn the_gate_does_as_the_model(requests in 1usize..6, bytes in 0u64..30, events in events()) {
        let bound = Load { requests, bytes };
        let gate = Gate::new(bound);
        let (mut visitors, mut model) = (Vec::<Visitor>::new(), Vec::<Modelled>::new());
        for event in events {
            match event {
                Event::Come(urgency, bytes) => {
                    visitors.push(Visitor::come(&gate, urgency, bytes));
                    model.push(Modelled { urgency, bytes, inside: false });
                }
                Event::Go(_) | Event::Raise(_) if model.is_empty() => continue,
                Event::Go(nth) => {
                    let nth = nth % model.len();
                    drop(visitors.remove(nth));
                    model.remove(nth);
                }
                Event::Raise(nth) => {
                    let nth = nth % model.len();
                    prop_assert!(visitors[nth].priority.raise(Arrival::now()));
                    model[nth].urgency = Urgency::Demand;
                }
            }
            while visitors.iter_mut().fold(false, |any, visitor| visitor.run() | any) {}
            settle(bound, &mut model);
            let seen: Vec<_> = visitors.iter().map(|visitor| visitor.inside.load(SeqCst)).collect();
            let expected: Vec<_> = model.iter().map(|one| one.inside).collect();
            prop_assert_eq!(seen, expected, "{:?}", model);
            let inside = load(model.iter().filter(|one| one.inside));
            prop_assert!(inside.requests <= 1 || (inside.requests <= requests && inside.bytes <= bytes));
        }
        drop(visitors);
        prop_assert_eq!(gate.book.lock().inside(), Load::default());
    }
}

/// A demand that waits keeps speculation out, also such as came before it.
#[tokio::test]
async fn speculation_yields_to_a_demand_that_waits() {
    let gate = Gate::new(Load { requests: 4, bytes: 100 });
    let demand = Priority::new(Urgency::Demand);
    let [first, second] = [gate.enter(&demand, 60).await, gate.enter(&demand, 40).await];
    let speculative = Priority::new(Urgency::Speculative);
    let mut early = Visitor::come(&gate, Urgency::Speculative, 1);
    early.run();
    let mut waiting = Visitor::come(&gate, Urgency::Demand, 70);
    waiting.run();
    drop(second);
    early.run();
    assert!(!early.inside.load(SeqCst), "there is room, but a demand waits for more");
    drop(first);
    waiting.run();
    early.run();
    assert!(waiting.inside.load(SeqCst) && early.inside.load(SeqCst));
    drop((waiting, early));
    gate.enter(&speculative, 50).await;
}

/// Threads that come, go, give up and are raised; the test hangs if a turn is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_turn_is_lost_between_threads() {
    let gate = Gate::new(Load { requests: 3, bytes: 10 });
    let visits = (0..2000_u64).map(|number| {
        let gate = gate.clone();
        tokio::spawn(async move {
            let urgency = if number % 3 == 0 { Urgency::Demand } else { Urgency::Speculative };
            let priority = Priority::new(urgency);
            let visit = async {
                let pass = gate.enter(&priority, number % 8).await;
                pass.during(&priority, tokio::task::yield_now()).await;
            };
            tokio::select! {
                () = visit => {}
                () = async { for _ in 0..number % 50 { tokio::task::yield_now().await } }, if number % 5 == 0 => {}
                () = async { tokio::task::yield_now().await; priority.raise(Arrival::now()); pending().await } => {}
            }
        })
    });
    for visit in visits.collect::<Vec<_>>() {
        visit.await.unwrap();
    }
    assert_eq!(gate.book.lock().inside(), Load::default());
}

//! A TCP proxy that breaks connections on order.
//!
//! It stands before a volume server and relays bytes both ways. A [`Fault`] is applied to the
//! server's answers on each connection accepted while it is set. Connections that are already open
//! are cut when the fault changes, so that a pooled connection cannot outlive it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It is closed at once.
    Refuse,
    /// It is closed after this many bytes of the server's answer.
    CutAfter(u64),
    /// Nothing more arrives after this many bytes of the server's answer, and it stays open.
    StallAfter(u64),
    /// Each part of the server's answer comes this much later.
    Delay(Duration),
    /// The byte at this place of the server's answer is inverted.
    Corrupt(u64),
}

#[derive(Debug)]
struct ProxyState {
    fault: Mutex<(Fault, Vec<TcpStream>)>,
    changed: Condvar,
    generation: AtomicU64,
    accepted: AtomicU64,
    ended: AtomicBool,
    target: SocketAddr,
}

/// The proxy; it ends, with all its connections, when it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    state: Arc<ProxyState>,
    acceptor: Option<JoinHandle<()>>,
}

impl FaultProxy {
    /// Relays connections on a port of its own to `target`, which need not be there yet.
    ///
    /// # Errors
    /// When `target` is no address or no port can be had.
    pub fn start(target: &str) -> anyhow::Result<FaultProxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let state = Arc::new(ProxyState {
            fault: Mutex::new((Fault::None, Vec::new())),
            changed: Condvar::new(),
            generation: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            target: target.parse()?,
        });
        let shared = Arc::clone(&state);
        let acceptor = thread::spawn(move || {
            for client in listener.incoming() {
                if shared.ended.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(client) = client {
                    shared.accepted.fetch_add(1, Ordering::SeqCst);
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || shared.serve(client));
                }
            }
        });
        Ok(FaultProxy { address, state, acceptor: Some(acceptor) })
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// How many connections it has accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Cuts all connections and treats new ones like this.
    pub fn set(&self, fault: Fault) {
        let mut guard = self.state.lock();
        guard.0 = fault;
        self.state.generation.fetch_add(1, Ordering::SeqCst);
        for stream in guard.1.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.state.changed.notify_all();
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        self.set(Fault::Refuse);
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl ProxyState {
    fn serve(&self, client: TcpStream) {
        let Ok(server) = TcpStream::connect_timeout(&self.target, Duration::from_secs(5)) else { return };
        let (fault, generation) = {
            let mut guard = self.lock();
            if guard.0 == Fault::Refuse {
                return;
            }
            for stream in [&client, &server] {
                let Ok(stream) = stream.try_clone() else { return };
                guard.1.push(stream);
            }
            (guard.0, self.generation.load(Ordering::SeqCst))
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                let _ = relay(&client, &server);
                let _ = server.shutdown(Shutdown::Write);
            });
            let _ = self.answer(&server, &client, fault, generation);
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        });
    }

    fn answer(
        &self,
        mut server: &TcpStream,
        mut client: &TcpStream,
        fault: Fault,
        generation: u64,
    ) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        let mut done = 0_u64;
        loop {
            let limit = match fault {
                Fault::CutAfter(at) | Fault::StallAfter(at) => at - done,
                _ => u64::MAX,
            };
            if limit == 0 {
                if matches!(fault, Fault::StallAfter(_)) {
                    self.await_change(generation);
                }
                return Ok(());
            }
            let room = usize::try_from(limit).unwrap_or(usize::MAX).min(buffer.len());
            let count = server.read(&mut buffer[..room])?;
            if count == 0 {
                return Ok(());
            }
            if let Fault::Corrupt(at) = fault
                && (done..done + count as u64).contains(&at)
            {
                let place = usize::try_from(at - done).expect("within the buffer");
                buffer[place] ^= 0xff;
            }
            if let Fault::Delay(time) = fault {
                thread::sleep(time);
            }
            client.write_all(&buffer[..count])?;
            done += count as u64;
        }
    }

    fn await_change(&self, generation: u64) {
        let mut guard = self.lock();
        while self.generation.load(Ordering::SeqCst) == generation {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Fault, Vec<TcpStream>)> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn relay(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    io::copy(&mut from, &mut to).map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A server that answers every connection with 1000 bytes of 7 and closes it.
    fn origin() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.write_all(&[7; 1000]);
            }
        });
        address
    }

    fn read_all(proxy: &FaultProxy) -> Vec<u8> {
        let mut stream = TcpStream::connect(proxy.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    }

    #[test]
    fn each_fault_shows_as_promised() {
        let proxy = FaultProxy::start(&origin().to_string()).unwrap();
        assert_eq!(read_all(&proxy), [7; 1000]);
        proxy.set(Fault::CutAfter(10));
        assert_eq!(read_all(&proxy), [7; 10]);
        proxy.set(Fault::StallAfter(20));
        assert_eq!(read_all(&proxy), [7; 20]);
        proxy.set(Fault::Refuse);
        assert!(read_all(&proxy).is_empty());
        proxy.set(Fault::Corrupt(999));
        let bytes = read_all(&proxy);
        assert_eq!((bytes.len(), bytes[998], bytes[999]), (1000, 7, 0xf8));
        let begun = Instant::now();
        proxy.set(Fault::Delay(Duration::from_millis(50)));
        assert_eq!(read_all(&proxy), [7; 1000]);
        assert!(begun.elapsed() >= Duration::from_millis(50));
        proxy.set(Fault::None);
        assert_eq!(read_all(&proxy), [7; 1000]);
    }
}

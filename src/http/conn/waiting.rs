//! The connections that wait for a request: new ones, and kept-alive ones whose last answer is written.
//!
//! Owns: the order in which they began to wait, for all of them and for each address.
//!
//! Guarantees: when a bound is exceeded, the connection that has waited longest must close. A client that sends
//! its request at once is therefore served, also while other clients open connections and send nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

/// Returns the address that a peer's waiting connections are counted for, or `None` if they count only in total.
///
/// It is a function value, so that this module does not depend on how addresses are grouped and proxies are configured.
#[derive(Clone)]
pub struct CountedAddress(Arc<dyn Fn(IpAddr) -> Option<IpAddr> + Send + Sync>);

impl CountedAddress {
    /// Counts connections by the address that `of` returns for their peer.
    pub fn new(of: impl Fn(IpAddr) -> Option<IpAddr> + Send + Sync + 'static) -> Self {
        Self(Arc::new(of))
    }

    pub(super) fn of(&self, peer: IpAddr) -> Option<IpAddr> {
        (self.0)(peer)
    }
}

/// Counts connections by the address of their peer.
impl Default for CountedAddress {
    fn default() -> Self {
        Self::new(Some)
    }
}

impl fmt::Debug for CountedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CountedAddress")
    }
}

/// The waiting connections of one listener. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct WaitingConns(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max: usize,
    max_per_address: usize,
    state: Mutex<State>,
}

/// The waiting connections. Each gets a number when it begins to wait, so that the smallest number has waited longest.
#[derive(Debug, Default)]
struct State {
    next: u64,
    by_age: BTreeMap<u64, Waiting>,
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
}

#[derive(Debug)]
struct Waiting {
    address: Option<IpAddr>,
    /// Wakes the task of the connection.
    waker: Waker,
}

/// One connection, from its accept until its stream starts or it ends. It stops to wait when it is dropped.
#[derive(Debug)]
pub(super) struct WaitingConn {
    conns: WaitingConns,
    /// The address that the connection is counted for, or `None` if it counts for no address.
    address: Option<IpAddr>,
    /// The number of the connection while it waits.
    number: Option<u64>,
}

impl WaitingConns {
    /// Returns an empty set that holds at most `max` connections, and at most `max_per_address` of one address.
    pub(super) fn new(max: usize, max_per_address: usize) -> Self {
        Self(Arc::new(Shared { max, max_per_address, state: Mutex::default() }))
    }

    /// Returns a new connection, which waits.
    pub(super) fn connection(&self, address: Option<IpAddr>) -> WaitingConn {
        let number = self.begin(address, Waker::noop());
        WaitingConn { conns: self.clone(), address, number: Some(number) }
    }

    /// A connection begins to wait. Closes others if more wait than a bound allows. Returns its number.
    fn begin(&self, address: Option<IpAddr>, waker: &Waker) -> u64 {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.by_age.insert(number, Waiting { address, waker: waker.clone() });
        if let Some(address) = address {
            let numbers = state.by_address.entry(address).or_default();
            numbers.insert(number);
            let oldest = numbers.first().copied().filter(|_| numbers.len() > self.0.max_per_address);
            oldest.map(|oldest| state.close(oldest));
        }
        let oldest = state.by_age.keys().next().copied().filter(|_| state.by_age.len() > self.0.max);
        oldest.map(|oldest| state.close(oldest));
        number
    }

    /// Closes the connection that has waited longest. Returns false if none waits.
    pub(super) fn close_oldest(&self) -> bool {
        let mut state = self.lock();
        let oldest = state.by_age.keys().next().copied();
        oldest.is_some_and(|number| state.close(number))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.by_age.remove(&number)?;
        if let Some(address) = waiting.address
            && let Some(numbers) = self.by_address.get_mut(&address)
        {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_address.remove(&address);
            }
        }
        Some(waiting)
    }

    fn close(&mut self, number: u64) -> bool {
        let removed = self.remove(number);
        if let Some(waiting) = &removed {
            waiting.waker.wake_by_ref();
        }
        removed.is_some()
    }
}

impl WaitingConn {
    /// The connection waits for a request. Is ready when it must close, because more connections wait than a bound
    /// allows and this one has waited longest.
    pub(super) fn poll_must_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(number) = self.number else {
            self.number = Some(self.conns.begin(self.address, cx.waker()));
            return Poll::Pending;
        };
        match self.conns.lock().by_age.get_mut(&number) {
            Some(waiting) => {
                waiting.waker.clone_from(cx.waker());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }

    /// The connection has a request, or ends.
    pub(super) fn stop(&mut self) {
        if let Some(number) = self.number.take() {
            self.conns.lock().remove(number);
        }
    }
}

impl Drop for WaitingConn {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(conn: &mut WaitingConn) -> bool {
        conn.poll_must_close(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// Returns which of the connections must close.
    fn closed(conns: &mut [WaitingConn]) -> Vec<usize> {
        conns.iter_mut().enumerate().filter_map(|(index, conn)| poll(conn).then_some(index)).collect()
    }

    fn address(last: u8) -> Option<IpAddr> {
        Some([192, 0, 2, last].into())
    }

    #[test]
    fn oldest_connection_of_an_address_closes_first() {
        let all = WaitingConns::new(100, 2);
        let mut conns: Vec<_> = [1, 1, 2, 1, 1].map(|last| all.connection(address(last))).into();
        assert_eq!(closed(&mut conns), [0, 1]);
        conns.truncate(3);
        assert_eq!(all.lock().by_age.len(), 1, "a dropped connection does not wait");
        drop(conns);
        assert!(all.lock().by_address.is_empty() && !all.close_oldest());
    }

    #[test]
    fn oldest_of_all_connections_closes_first_and_a_request_ends_the_wait() {
        let all = WaitingConns::new(3, 100);
        // Connections without an address count only in total.
        let mut conns: Vec<_> = [Some(1), None, Some(2)].map(|last| all.connection(last.and_then(address))).into();
        conns[0].stop();
        conns.push(all.connection(None));
        assert_eq!(closed(&mut conns[1..]), [0; 0], "three wait, because the first has a request");
        conns.push(all.connection(None));
        assert_eq!(closed(&mut conns[1..]), [0], "the second has waited longest");
        assert!(all.close_oldest());
        assert_eq!(closed(&mut conns[2..]), [0]);
        // A kept-alive connection waits again, after all others.
        conns[1].stop();
        conns[2].stop();
        assert!(!poll(&mut conns[0]));
        assert!(all.close_oldest() && all.close_oldest() && all.close_oldest() && !all.close_oldest());
    }
}

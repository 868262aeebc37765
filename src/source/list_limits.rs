//! Bounds of one list, over all its pages (docs/limits.md#hub).
//!
//! Guarantees: a server that never ends its pages, or that sends them slowly, costs a bounded time and a bounded memory.
//! Pure: the caller reads the clock.

use std::time::Duration;

use tokio::time::Instant;

/// Objects in one page of a list. kubectl and client-go use the same number. A page of Pods is then about 7 MB.
pub(super) const PAGE_OBJECTS: u32 = 500;
/// Maximum bytes of one page: nine times the size of 500 Pods of 14 KB.
pub(super) const PAGE_BYTES: usize = 64 << 20;
/// Maximum bytes of one watch line. etcd limits an object to 1.5 MiB; a MODIFIED line holds one object.
pub(super) const LINE_BYTES: usize = 4 << 20;

/// Bounds of one list, over all its pages. A list beyond one of them has failed, and changes nothing.
#[derive(Clone, Copy, Debug)]
pub struct ListLimits {
    /// Maximum time from the first request to the last byte.
    pub time: Duration,
    /// Maximum number of pages. The default is ten times the pages that `objects` need with 500 objects each, because a
    /// server may send fewer.
    pub pages: usize,
    /// Maximum bytes of all pages together. The default is 500,000 objects of 8 KiB.
    pub bytes: u64,
    /// Maximum number of objects.
    pub objects: usize,
    /// Maximum bytes that the views of the objects hold, as charged by [`crate::event::View::charged_bytes`].
    pub view_bytes: usize,
}

impl Default for ListLimits {
    fn default() -> Self {
        ListLimits {
            time: Duration::from_secs(120),
            pages: 10_000,
            bytes: 4 << 30,
            objects: 500_000,
            view_bytes: 128 << 20,
        }
    }
}

/// What a list has used of its limits.
#[derive(Debug)]
pub(super) struct ListUsage {
    limits: ListLimits,
    end_by: Instant,
    pages: usize,
    bytes: u64,
    objects: usize,
    view_bytes: usize,
}

impl ListUsage {
    /// Starts a list at this time.
    pub(super) fn start(limits: ListLimits, now: Instant) -> ListUsage {
        ListUsage { limits, end_by: now + limits.time, pages: 0, bytes: 0, objects: 0, view_bytes: 0 }
    }

    /// Returns the time that the list has left, zero after its end.
    pub(super) fn time_left(&self, now: Instant) -> Duration {
        self.end_by.saturating_duration_since(now)
    }

    /// Counts a page before it is requested.
    ///
    /// # Errors
    /// The exceeded limit, for an error message.
    pub(super) fn add_page(&mut self) -> Result<(), String> {
        self.pages += 1;
        if self.pages > self.limits.pages { Err(format!("more than {} pages", self.limits.pages)) } else { Ok(()) }
    }

    /// Counts the bytes of a page.
    ///
    /// # Errors
    /// The exceeded limit, for an error message.
    pub(super) fn add_bytes(&mut self, bytes: usize) -> Result<(), String> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.bytes > self.limits.bytes { Err(format!("more than {} bytes", self.limits.bytes)) } else { Ok(()) }
    }

    /// Counts an object whose view holds this many bytes.
    ///
    /// # Errors
    /// The exceeded limit, for an error message.
    pub(super) fn add_object(&mut self, view_bytes: usize) -> Result<(), String> {
        let limits = &self.limits;
        self.objects += 1;
        self.view_bytes = self.view_bytes.saturating_add(view_bytes);
        if self.objects > limits.objects {
            return Err(format!("more than {} objects", limits.objects));
        }
        if self.view_bytes > limits.view_bytes {
            return Err(format!("objects that take more than {} bytes of memory", limits.view_bytes));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_reached_by_one_more() {
        let limits = ListLimits { time: Duration::from_secs(5), pages: 2, bytes: 100, objects: 3, view_bytes: 1000 };
        let now = Instant::now();
        let mut usage = ListUsage::start(limits, now);
        assert_eq!([usage.add_page(), usage.add_page()], [Ok(()), Ok(())]);
        assert_eq!(usage.add_page(), Err("more than 2 pages".to_owned()));
        assert_eq!([usage.add_bytes(60), usage.add_bytes(40)], [Ok(()), Ok(())]);
        assert_eq!(usage.add_bytes(1), Err("more than 100 bytes".to_owned()));
        assert_eq!([usage.add_object(500), usage.add_object(500)], [Ok(()), Ok(())]);
        assert_eq!(usage.add_object(1), Err("objects that take more than 1000 bytes of memory".to_owned()));
        assert_eq!(usage.add_object(0), Err("more than 3 objects".to_owned()));
        assert_eq!(usage.time_left(now + Duration::from_secs(2)), Duration::from_secs(3));
        assert_eq!(usage.time_left(now + Duration::from_secs(6)), Duration::ZERO);
    }
}

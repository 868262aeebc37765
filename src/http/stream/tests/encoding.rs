//! Reads that encode: they run on blocking threads, a bounded number at once.

use std::thread::{self, ThreadId};

use super::*;

/// An outbound with a number of parts that must be encoded. It records the threads of the reads.
struct EncodingOutbound {
    left: usize,
    encoding: Arc<AtomicUsize>,
    max_encoding: Arc<AtomicUsize>,
    threads: Arc<Mutex<Vec<ThreadId>>>,
}

impl Outbound for EncodingOutbound {
    fn read(&mut self, _max_bytes: usize) -> ReadResult {
        if self.left == 0 {
            return ReadResult::Idle;
        }
        let at_once = self.encoding.fetch_add(1, Ordering::SeqCst) + 1;
        self.max_encoding.fetch_max(at_once, Ordering::SeqCst);
        self.threads.lock().unwrap().push(thread::current().id());
        // Long enough for other streams to start.
        thread::sleep(Duration::from_millis(1));
        self.encoding.fetch_sub(1, Ordering::SeqCst);
        self.left -= 1;
        ReadResult::Batch(vec![text_frame(&self.left.to_string())])
    }

    fn prepare_read(&mut self) -> bool {
        self.left > 0
    }

    fn poll_readable(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

#[tokio::test]
async fn parts_are_encoded_off_the_runtime_threads_and_arrive_in_order() {
    const PARTS: usize = 20;
    let config = Config { max_concurrent_encodings: 2, ..Config::default() };
    let context = stream_context(config);
    let (encoding, max_encoding) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let threads = Arc::<Mutex<Vec<ThreadId>>>::default();
    let mut clients = Vec::new();
    for _ in 0..5 {
        let out = EncodingOutbound {
            left: PARTS,
            encoding: encoding.clone(),
            max_encoding: max_encoding.clone(),
            threads: threads.clone(),
        };
        let (client, server) = tokio::io::duplex(4096);
        drop(spawn_stream(websocket(out, socket(Conn::Duplex(server), b""), acquire_permit(&context))));
        clients.push(client);
    }
    for mut client in clients {
        read_head(&mut client).await;
        let mut expected = Vec::new();
        for part in (0..PARTS).rev() {
            expected.extend_from_slice(&text_frame(&part.to_string()));
        }
        let mut got = vec![0; expected.len()];
        timeout(TIMEOUT, client.read_exact(&mut got)).await.unwrap().unwrap();
        assert_eq!(got, expected);
    }
    let threads = threads.lock().unwrap();
    assert_eq!(threads.len(), 5 * PARTS);
    assert!(threads.iter().all(|id| *id != thread::current().id()), "a read ran on the thread of the runtime");
    assert!(max_encoding.load(Ordering::SeqCst) <= 2);
}

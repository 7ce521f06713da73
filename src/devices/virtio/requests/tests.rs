use std::thread;

use super::*;

#[test]
fn requests_are_taken_in_order_as_many_as_may_be() {
    let mut requests = Requests::default();
    assert_eq!(requests.next(9, |_| true), Next::Wait);
    for (id, request) in (0..).zip("abcde".chars()) {
        requests.submit(id, request);
    }
    assert_eq!(
        requests.next(2, |_| true),
        Next::Serve([(0, 'a'), (1, 'b')].into_iter().collect())
    );
    requests.served();
    assert_eq!(
        requests.next(9, |c| *c < 'd'),
        Next::Serve([(2, 'c')].into_iter().collect())
    );
    requests.served();
    assert_eq!(requests.next(9, |c| *c < 'd'), Next::Wait);
    requests.cancel();
    assert_eq!(requests.next(9, |_| true), Next::Forget);
    assert_eq!(requests.next(9, |_| true), Next::Wait);
}

#[test]
fn a_reset_waits_for_what_is_being_served() {
    let mut requests = Requests::default();
    requests.submit(0, ());
    assert_eq!(
        requests.next(1, |()| true),
        Next::Serve([(0, ())].into_iter().collect())
    );
    requests.submit(1, ());
    let mut other = requests.clone();
    let reset = thread::spawn(move || other.cancel());
    while !requests.state().cancelled {
        thread::yield_now();
    }
    assert!(!reset.is_finished());
    requests.served();
    reset.join().expect("it comes back");
    assert_eq!(requests.next(1, |()| true), Next::Forget);
    assert_eq!(requests.next(1, |()| true), Next::Wait);
}

#[test]
fn a_thread_ends_with_its_worker() {
    struct Bell(Mutex<bool>, Condvar);
    impl Doorbell for Bell {
        fn wait(&self, _: Option<Duration>) {
            let mut rung = self.0.lock().expect("whole");
            while !*rung {
                rung = self.1.wait(rung).expect("whole");
            }
        }
        fn ring(&self) {
            *self.0.lock().expect("whole") = true;
            self.1.notify_all();
        }
    }
    let requests = Requests::<()>::default();
    let bell = Arc::new(Bell(Mutex::new(false), Condvar::new()));
    let (queue, waited) = (requests.clone(), bell.clone());
    let work = move || {
        while queue.next(1, |()| true) != Next::End {
            waited.wait(None);
        }
    };
    let worker = Worker::start(Role::Disk, requests, bell, work).expect("a thread");
    drop(worker);
}

/// A doorbell by which a guest hands over requests.
#[derive(Default)]
struct Bell {
    inbox: Mutex<Inbox>,
    changed: Condvar,
}

#[derive(Default)]
struct Inbox {
    rung: bool,
    added: Vec<u32>,
}

impl Bell {
    fn add(&self, request: u32) {
        self.inbox.lock().unwrap().added.push(request);
        self.ring();
    }

    /// Wait, then submit what the guest added.
    fn submit_to(&self, requests: &mut Requests<u32>) {
        self.wait(None);
        for request in std::mem::take(&mut self.inbox.lock().unwrap().added) {
            requests.submit(0, request);
        }
    }
}

impl Doorbell for Bell {
    fn wait(&self, _: Option<Duration>) {
        let mut inbox = self.inbox.lock().unwrap();
        while !std::mem::take(&mut inbox.rung) {
            inbox = self.changed.wait(inbox).unwrap();
        }
    }

    fn ring(&self) {
        self.inbox.lock().unwrap().rung = true;
        self.changed.notify_all();
    }
}

struct Service {
    requests: Requests<u32>,
    bell: Arc<Bell>,
    /// What was served.
    served: Arc<Mutex<Vec<u32>>>,
    workers: Vec<Worker>,
}

/// A thread that serves what `may` lets pass, and is done when it is given 0.
fn service(may: fn(&u32) -> bool, fault: Option<String>) -> Service {
    let requests = Requests::default();
    let bell = Arc::new(Bell::default());
    let served = Arc::<Mutex<Vec<u32>>>::default();
    let (mut queue, rung, log) = (requests.clone(), bell.clone(), served.clone());
    let work = move || {
        loop {
            match queue.next(3, may) {
                Next::Serve(taken) => {
                    let taken = taken.into_iter().map(|(_, request)| request);
                    log.lock().unwrap().extend(taken);
                    queue.served();
                    if log.lock().unwrap().contains(&0) {
                        return;
                    }
                }
                Next::Forget => {}
                Next::Wait => rung.submit_to(&mut queue),
                Next::Pause => queue.stay_paused(fault.clone()),
                Next::End => return,
            }
        }
    };
    let worker = Worker::start(Role::Disk, requests.clone(), bell.clone(), work).unwrap();
    Service {
        requests,
        bell,
        served,
        workers: vec![worker],
    }
}

impl Service {
    fn served(&self) -> Vec<u32> {
        self.served.lock().unwrap().clone()
    }
}

#[test]
fn a_paused_thread_waits_and_then_misses_nothing() {
    const ALL: u32 = 20_000;
    let service = service(|_| true, None);
    let bell = service.bell.clone();
    let guest = thread::spawn(move || {
        for request in 1..=ALL {
            bell.add(request);
        }
    });
    let mut quieted = 0;
    while !guest.is_finished() || quieted < 50 {
        let quiet = quiesce(&service.workers);
        let before = service.served();
        for _ in 0..quieted % 7 {
            thread::yield_now();
        }
        assert_eq!(service.served().len(), before.len());
        drop(quiet);
        quieted += 1;
    }
    guest.join().unwrap();
    while service.served().len() < ALL as usize {
        thread::yield_now();
    }
    assert!(service.served().into_iter().eq(1..=ALL));
}

#[test]
fn a_pause_waits_for_no_rate() {
    let mut service = service(|_| false, None);
    for request in 1..10 {
        service.requests.submit(0, request);
    }
    drop(quiesce(&service.workers));
    assert!(service.served().is_empty());
}

#[test]
fn what_is_put_back_is_taken_first_and_was_paid_for() {
    let mut requests = Requests::default();
    for (id, request) in (0..).zip("abc".chars()) {
        requests.submit(id, request);
    }
    let Next::Serve(taken) = requests.next(2, |_| true) else {
        panic!("nothing to serve");
    };
    assert!(!requests.is_interrupted());
    requests.put_back(taken.into_iter());
    requests.served();
    let both = Next::Serve([(0, 'a'), (1, 'b')].into_iter().collect());
    assert_eq!(requests.next(9, |_| false), both);
    let mut other = requests.clone();
    let reset = thread::spawn(move || other.cancel());
    while !requests.is_interrupted() {
        thread::yield_now();
    }
    requests.put_back([(0, 'a')].into_iter());
    requests.served();
    reset.join().expect("it comes back");
    assert_eq!(requests.next(9, |_| true), Next::Forget);
    assert_eq!(requests.next(9, |_| true), Next::Wait);
}

#[test]
fn a_paused_thread_delays_neither_a_reset_nor_the_end() {
    let mut service = service(|_| true, None);
    let quiet = quiesce(&service.workers);
    let again = quiesce(&service.workers);
    service.requests.submit(0, 1);
    service.requests.cancel();
    drop(again);
    assert!(service.requests.state().paused.is_some(), "still paused");
    std::mem::forget(quiet);
    service.workers.clear();
    assert!(service.served().is_empty());
}

#[test]
fn an_ended_thread_counts_as_paused() {
    let service = service(|_| true, None);
    service.bell.add(0);
    drop(quiesce(&service.workers));
    while !service.requests.state().ended {
        thread::yield_now();
    }
    drop(quiesce(&service.workers));
}

#[test]
fn a_failed_write_out_is_reported() {
    let service = service(|_| true, Some("disk a: full".into()));
    assert_eq!(quiesce(&service.workers).faults, ["disk a: full"]);
}

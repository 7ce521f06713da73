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
        Next::Serve(vec![(0, 'a'), (1, 'b')])
    );
    requests.served();
    assert_eq!(requests.next(9, |c| *c < 'd'), Next::Serve(vec![(2, 'c')]));
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
    assert_eq!(requests.next(1, |()| true), Next::Serve(vec![(0, ())]));
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
    let worker = Worker::start("test", requests, bell, work).expect("a thread");
    drop(worker);
}

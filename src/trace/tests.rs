use super::summary::{self, Error, Summary};
use super::*;

fn text(trace: &Trace) -> String {
    let mut out = Vec::new();
    perfetto::write(&trace.recording(), &mut out).expect("memory takes it");
    String::from_utf8(out).expect("text")
}

fn trace() -> Arc<Trace> {
    Arc::new(Trace::new(Instant::now(), 2))
}

fn exit(reason: Reason, left: Nanoseconds, handled: Nanoseconds) -> Exit {
    Exit {
        entered: left - 10,
        left,
        handled,
        reason,
        addr: 0x3f8,
        value: 0x41,
        size: 1,
        register: Some("THR"),
    }
}

fn at_com1() -> Place {
    Place {
        space: Space::Port,
        base: 0x3f8,
        last: 0x3ff,
        name: "COM1".into(),
    }
}

fn sums(trace: &Trace) -> Summary {
    summary::of(text(trace).as_bytes()).expect("our own file")
}

#[test]
fn a_file_is_one_event_a_line_in_the_documented_format() {
    let trace = trace();
    trace.set_places(vec![at_com1()]);
    let track = trace.vcpu(1).expect("a vCPU");
    track.exit(exit(Reason::PortWrite, 1_234_567, 1_234_999));
    track.entered(2_000_000);
    let recorder = Recorder::new(&trace, "disk \"vda\"\u{1b}");
    let (device, queue) = (recorder.device, 3);
    let completed = Event::Completed {
        device,
        queue,
        since: 5_000,
        chains: 2,
        interrupt: true,
    };
    trace.record_at(6_001, completed);
    recorder.interrupt(5);
    let text = text(&trace);
    for line in [
        r#"{"ph":"X","pid":2,"tid":101,"name":"COM1","cat":"exit","ts":1234.567,"dur":0.432,"args":{"reason":"port write","port":"0x3f8","size":1,"value":"0x41","offset":"0x0","register":"THR"}}"#,
        r#"{"ph":"X","pid":2,"tid":101,"name":"guest","cat":"guest","ts":1234.557,"dur":0.010,"args":{}}"#,
        r#"{"ph":"X","pid":3,"tid":1003,"name":"disk \"vda\"\u001b","cat":"completion","ts":5.000,"dur":1.001,"args":{"chains":2,"interrupt":true}}"#,
        r#"{"ph":"M","pid":3,"tid":1003,"name":"thread_name","args":{"name":"disk \"vda\"\u001b queue 3"}}"#,
        r#""name":"guest","cat":"guest","ts":2000.000,"#,
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    let events: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let events = events["traceEvents"].as_array().expect("events");
    assert_eq!(events.len(), text.lines().count() - 2);
}

#[test]
fn a_summary_has_what_was_recorded() {
    let trace = trace();
    trace.set_places(vec![at_com1()]);
    let [first, second] = [0, 1].map(|index| trace.vcpu(index).expect("a vCPU"));
    for n in 1..=100 {
        first.exit(exit(Reason::PortWrite, 1000 * n, 1000 * n + n));
    }
    second.exit(exit(Reason::MmioRead, 50, 60));
    second.exit(exit(Reason::Instruction("popcnt"), 70, 72));
    let recorder = Recorder::new(&trace, "vda");
    recorder.interrupt(5);
    let mut queues = Queues::new(recorder, 1);
    queues.completed(0, 0, false);
    queues.notified(0);
    queues.notified(0);
    queues.completed(0, 4, false);
    queues.completed(0, 4, false);
    queues.completed(0, 7, true);
    trace.console(b"one\r\ntwo\r\nand no");
    let sums = sums(&trace);
    let kinds: Vec<_> = sums
        .exits
        .iter()
        .map(|kind| (kind.reason.as_str(), kind.device.as_str(), kind.times.count))
        .collect();
    let expected = [
        ("port write", "COM1", 100),
        ("MMIO read", "no device", 1),
        ("instruction", "popcnt", 1),
    ];
    assert_eq!(kinds, expected);
    let times = &sums.exits[0].times;
    assert_eq!(
        (
            times.total_us,
            times.p50_us,
            times.p90_us,
            times.p99_us,
            times.max_us
        ),
        (5.05, 0.05, 0.09, 0.099, 0.1)
    );
    assert!((sums.exits[0].share - 5050.0 / 5062.0).abs() < 1e-9);
    assert_eq!(sums.vcpus[0].name, "vCPU 0");
    assert_eq!((sums.vcpus[0].exits, sums.vcpus[1].exits), (100, 2));
    assert!((sums.vcpus[0].guest_us - 1.0).abs() < 1e-9);
    let queue = &sums.queues[0];
    assert_eq!(
        (
            queue.name.as_str(),
            queue.notifications,
            queue.chains,
            queue.interrupts
        ),
        ("vda queue 0", 2, 7, 1)
    );
    assert_eq!(queue.batches.count, 2);
    assert_eq!(sums.interrupts["vda"], 1);
    assert_eq!((sums.console_lines, sums.dropped), (2, 0));
}

#[test]
fn dropped_events_are_counted_in_the_file() {
    let trace = trace();
    for _ in 0..MAX_EVENTS + 3 {
        trace.record(Event::Mark("x".into()));
    }
    assert_eq!(trace.recording().dropped(), 3);
    assert_eq!(sums(&trace).dropped, 3);
}

#[test]
fn a_guest_s_line_is_cut_and_cannot_break_the_file() {
    let trace = trace();
    trace.console(&b"\xff\"\\\x07".repeat(MAX_LINE));
    trace.console(b"\n\n\n");
    assert_eq!(sums(&trace).console_lines, 1);
    assert!(text(&trace).bytes().all(|b| b == b'\n' || b >= b' '));
}

#[test]
fn another_file_is_refused_with_the_place_where_it_differs() {
    let refusal = |file: &str| summary::of(file.as_bytes()).expect_err(file).to_string();
    assert!(refusal("").contains("line 1 column 0"));
    assert!(refusal("[]").contains("expected an object with the member traceEvents at line 1"));
    let cut = text(&trace());
    assert!(refusal(&cut[..cut.len() - 4]).contains("EOF while parsing"));
    assert!(refusal("{\"traceEvents\":[\n{\"tid\":\"x\"}]}").contains("line 2 column"));
    assert!(
        refusal("{\"traceEvents\":[{\"ts\":-1}]}")
            .contains("an event with an invalid time or duration")
    );
    assert!(refusal("{} {}").contains("trailing"));
    for foreign in [
        "{}",
        "{\"traceEvents\":[]}",
        "{\"otherData\":{\"hull\":\"1\"}}",
    ] {
        let error = summary::of(foreign.as_bytes()).expect_err(foreign);
        assert!(matches!(error, Error::Foreign(_)), "{foreign}: {error}");
    }
}

//! Virtqueues.

use crate::cli::table::Table;
use crate::cli::table::count;
use crate::inspect::{ChainView, QueueView, Queues, Rings};

/// All of them, device by device.
pub fn draw(all: &[Queues]) -> String {
    if all.is_empty() {
        return "no virtio devices\n".into();
    }
    let mut text = Vec::new();
    for device in all {
        let queues: Vec<String> = device.queues.iter().map(queue).collect();
        text.push(format!("{}\n{}", device.device, queues.concat()));
    }
    text.join("\n")
}

fn queue(queue: &QueueView) -> String {
    let QueueView { index, .. } = queue;
    let Some(rings) = &queue.rings else {
        let most = queue.max_size;
        return format!("  queue {index}: not ready, at most {most} entries\n");
    };
    let mut text = format!(
        "  queue {index}: {} entries, descriptors {}, available ring {}, used ring {}\n",
        queue.size, queue.descriptors, queue.available, queue.used
    );
    text += &format!(
        "    {} so far, {} in flight, {} waiting\n",
        count(queue.traffic.requests, "chain"),
        rings.in_flight,
        rings.waiting
    );
    text += &indices(rings);
    if let Some(fault) = &rings.fault {
        text += &format!("    broken: {fault}\n");
    }
    for chain in &rings.chains {
        text += &self::chain(chain);
    }
    let hidden = usize::from(rings.waiting).saturating_sub(rings.chains.len());
    if hidden > 0 && rings.fault.is_none() {
        text += &format!("    and {} more\n", count(hidden as u64, "waiting chain"));
    }
    text
}

fn indices(rings: &Rings) -> String {
    let event = |name, event: Option<u16>| match event {
        Some(event) => format!(", {name} {event}"),
        None => String::new(),
    };
    format!(
        "    available: idx {}, device has taken {}, flags {:#x}{}\n    \
         used: idx {}, flags {:#x}{}\n",
        rings.avail_idx,
        rings.next_avail,
        rings.avail_flags,
        event("used_event", rings.used_event),
        rings.used_idx,
        rings.used_flags,
        event("avail_event", rings.avail_event),
    )
}

fn chain(chain: &ChainView) -> String {
    let mut text = format!("    chain {}\n", chain.head);
    let mut rows = Table::indented(6);
    for descriptor in &chain.descriptors {
        let table = descriptor.table.map(|table| format!("in table {table}"));
        rows.row([
            format!("{}", descriptor.index),
            format!("{}", descriptor.addr),
            count(descriptor.len.into(), "byte"),
            descriptor.flags.clone(),
            table.unwrap_or_default(),
        ]);
    }
    text += &rows.draw();
    if let Some(fault) = &chain.fault {
        text += &format!("      the chain {fault}\n");
    }
    text
}

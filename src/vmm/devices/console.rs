//! A virtio console in its slot.

use std::sync::{Arc, Mutex};

use super::slots::{AttachContext, Slots};
use crate::agent;
use crate::devices::virtio::console::Console;
use crate::vmm::error::VmmError;
use crate::vmm::pipe::{Inbox, InboxSink, Pipe, Port};

/// The pipes of a console: its terminal, and a port for the agent if there is to be one.
pub fn attach(
    slots: &mut Slots,
    context: &mut AttachContext,
    with_agent: bool,
) -> Result<Vec<Pipe>, VmmError> {
    let inboxes: [Arc<Mutex<Inbox>>; 2] = Default::default();
    let [terminal, port] = inboxes.clone().map(|inbox| Box::new(InboxSink(inbox)));
    let mut device = Console::new(terminal);
    if with_agent {
        device = device.with_port(agent::PORT_NAME, port);
    }
    let slot = slots.attach(context, "virtio console", Box::new(device))?;
    let pipe = |(number, inbox)| Pipe::Port(Port::new(slot.clone(), number, inbox));
    let ports = inboxes.into_iter().take(if with_agent { 2 } else { 1 });
    Ok(ports.enumerate().map(pipe).collect())
}

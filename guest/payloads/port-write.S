# One byte to an I/O port: 0x80, where firmware shows how far it is. The OUT is an
# exit, KVM_EXIT_IO, and hull notes the byte with the time. 0x60 is the code of an
# init that is up, so `hull run --timing` shows the time as "to init".
.include "header.inc"
.code16
.text
	flat_header 16
	mov $0x60, %al
	out %al, $0x80
	power_off

# The smallest guest that says something: real mode, a string to the first serial
# port (COM1, I/O port 0x3f8), then power-off. Each OUT leaves the guest: KVM
# returns to hull with KVM_EXIT_IO, hull writes the byte and goes back in.
.include "header.inc"
.code16
.text
	flat_header 16
	cld
	mov $message, %si
	mov $0x3f8, %dx
1:	lodsb
	test %al, %al
	jz 2f
	out %al, %dx
	jmp 1b
2:	power_off
message:
	.asciz "Hello from a virtual machine\n"

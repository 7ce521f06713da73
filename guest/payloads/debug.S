# 64-bit: a program for gdb, at addresses that a script can name. Calls a
# function (0x8040) five times, which counts in RBX and in memory (0x8100), prints a
# line and powers off.
.include "header.inc"
.code64
.text
	flat_header 64
	xor %ebx, %ebx
1:	call work
	cmp $5, %ebx
	jne 1b
	mov $message, %esi
	mov $0x3f8, %dx
2:	lodsb
	test %al, %al
	jz 3f
	out %al, %dx
	jmp 2b
3:	power_off
	.org 0x40
work:
	inc %rbx
	mov %rbx, counter
	ret
message:
	.asciz "counted\n"
	.org 0x100
counter:
	.quad 0

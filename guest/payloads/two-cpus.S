# Two CPUs: the first starts the second by INIT and SIPI, two messages from its local APIC
# (Intel SDM 3A, 9.4.4 and 11.6), and both count in the same memory. Without a second CPU
# the first prints after a while that it is alone.
.include "header.inc"
	.equ APIC, 0xfee00000		# the registers of each CPU's own local APIC
	.equ SPURIOUS, 0x0f0		# bit 8 enables the APIC
	.equ ICR_LOW, 0x300		# writing it sends: type in bits 8 to 10, vector in 0 to 7
	.equ ICR_HIGH, 0x310		# the destination: APIC ID in bits 24 to 31
	.equ START, 0x1000		# where the second CPU starts: a page below 1 MiB
	.equ EACH, 1000

.code32
.text
	flat_header 32
	mov $second, %esi
	mov $START, %edi
	mov $second_end - second, %ecx
	rep movsb

	mov $APIC, %ebx
	movl $0x1ff, SPURIOUS(%ebx)
	movl $1 << 24, ICR_HIGH(%ebx)	# APIC ID 1
	movl $0x4500, ICR_LOW(%ebx)	# INIT: reset, and wait
	mov $100, %ecx			# a moment: a real CPU takes up to 10 ms
1:	in $0x80, %al
	loop 1b
	movl $1 << 24, ICR_HIGH(%ebx)
	movl $0x4600 | START >> 12, ICR_LOW(%ebx) # SIPI: start at this page

	mov $EACH, %ecx
2:	lock incl total			# LOCK: read, add and write as one step
	loop 2b

	mov $both, %esi
	mov $20000, %ecx
3:	cmpl $2 * EACH, total
	je 4f
	in $0x80, %al			# an exit: long enough for the other to count
	loop 3b
	mov $alone, %esi
4:	mov $0x3f8, %dx
5:	lodsb
	test %al, %al
	jz 6f
	out %al, %dx
	jmp 5b
6:	power_off

both:	.asciz "two CPUs counted to 2000\n"
alone:	.asciz "alone: no second CPU counted\n"
	.balign 4
total:	.long 0

# The second CPU, in real mode with CS 0x100 and IP 0 (9.4.4): a CPU always starts in real
# mode. This code may be at any address: its jumps are relative.
.code16
second:
	xor %ax, %ax
	mov %ax, %ds
	mov $EACH, %cx
7:	lock incl total
	loop 7b
8:	cli
	hlt
	jmp 8b
second_end:

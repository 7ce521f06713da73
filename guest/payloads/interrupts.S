# Five timer ticks: the timer (8254) raises line 0 of the interrupt controller (8259A), which
# sends vector 0x20, whose gate in the IDT points to `tick`. Between ticks the CPU sleeps in
# HLT.
.include "header.inc"
	.equ CODE, 0x10			# the code segment in the GDT that hull made
	.equ VECTOR, 0x20		# 0 to 0x1f are the CPU's own exceptions
	.equ PIC, 0x20			# 8259A: commands, and data at 0x21
	.equ PIT, 0x40			# 8254: counter 0, and its control word at 0x43
	.equ HERTZ, 20

.macro put value, port
	mov $\value, %al
	out %al, $\port
.endm

.code64
.text
	flat_header 64

# The IDT: 16 bytes a vector, and the handler's address in three parts (Intel SDM 3A, 6.14.1).
	mov $tick, %eax
	mov %ax, gate
	movw $CODE, gate + 2
	movw $0x8e00, gate + 4		# present, ring 0, interrupt gate
	shr $16, %eax
	mov %ax, gate + 6
	movl $0, gate + 8
	lidt idt_pointer

# The controller: four words that initialize it, then the mask.
	put 0x11, PIC			# ICW1: initialize, ICW4 follows
	put VECTOR, PIC + 1		# ICW2: line 0 is this vector
	put 0x04, PIC + 1		# ICW3: the second controller is at line 2
	put 0x01, PIC + 1		# ICW4: 8086 mode
	put 0xfe, PIC + 1		# mask all lines but 0

# The timer counts down from here to 0 at 1193182 Hz, repeatedly.
	put 0x34, PIT + 3		# counter 0, both bytes, mode 2: a rate
	put (1193182 / HERTZ) & 0xff, PIT
	put (1193182 / HERTZ) >> 8, PIT

	sti
1:	hlt				# until the next interrupt
	cmpb $'5', count
	jne 1b
	power_off

tick:
	push %rax
	push %rcx
	push %rdx
	push %rsi
	incb count
	mov $message, %esi
	mov $message_end - message, %ecx
	mov $0x3f8, %dx
	rep outsb
	put 0x20, PIC			# EOI: the line may interrupt again
	pop %rsi
	pop %rdx
	pop %rcx
	pop %rax
	iretq

message:
	.ascii "tick "
count:	.ascii "0\n"
message_end:

	.balign 16
idt:	.skip 16 * VECTOR		# no exception is expected
gate:	.skip 16
idt_pointer:
	.word . - idt - 1
	.quad idt

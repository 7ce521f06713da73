# Echoes what it receives: the serial port at COM1 interrupts for each byte, and the CPU sleeps in
# HLT in between. Real mode, like serial.S.
.include "header.inc"
	.equ DATA, 0x3f8		# read: receive; write: transmit
	.equ IER, 0x3f9			# bit 0: interrupt when a byte was received
	.equ IIR, 0x3fa			# write: FIFO control
	.equ LCR, 0x3fb
	.equ MCR, 0x3fc			# OUT2 enables the interrupt line
	.equ LSR, 0x3fd			# bit 0: a byte was received
	.equ PIC, 0x20

.macro put value, port
	mov $\value, %al
	mov $\port, %dx
	out %al, %dx
.endm

.code16
.text
	flat_header 16
	cli
	put 0x03, LCR			# 8 bits, no parity, one stop bit
	put 0x07, IIR			# FIFOs on and empty
	put 0x0b, MCR			# DTR, RTS, OUT2
	put 0x11, PIC			# ICW1: initialize, ICW4 follows
	put 0x08, PIC + 1		# ICW2: the first vector
	put 0x04, PIC + 1		# ICW3: the second controller is at line 2
	put 0x01, PIC + 1		# ICW4: 8086 mode
	put 0xef, PIC + 1		# mask all lines but 4
	movw $received, 4 * 12		# vector 8 + 4: offset
	movw $0, 4 * 12 + 2		# and segment of its handler
	put 0x01, IER
	put '>', DATA			# ready
1:	sti
	hlt
	jmp 1b

received:
	push %ax
	push %dx
2:	mov $LSR, %dx
	in %dx, %al
	test $1, %al
	jz 3f
	mov $DATA, %dx
	in %dx, %al
	out %al, %dx
	jmp 2b
3:	put 0x20, PIC			# EOI
	pop %dx
	pop %ax
	iret
